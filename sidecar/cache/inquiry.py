"""A question on its way through the semantic cache: from the event loop to the thread and back."""

import asyncio
from collections.abc import Callable
from typing import Literal

import msgspec

from sidecar.core.entry import Entry
from sidecar.core.fingerprint import Question
from sidecar.core.semantic.decision import NOTHING, Candidate, Verdict
from sidecar.core.semantic.guards import unmatchable
from sidecar.stores.base import Near

Ready = Callable[[Near], None]


class Job(msgspec.Struct, frozen=True, eq=False):
    """Something to do for one question."""

    text: str
    scope: bytes
    threshold: float
    """How near what is found has to be, but for the nearest one."""
    search: bool
    """Whether to look for what is near, or only to make the vector."""


class Done(msgspec.Struct, eq=False):
    """What came of it."""

    near: Near | None = None
    """What to store with its answer; None where there is no use in that."""
    found: list[Candidate] = []
    """The nearest first."""
    error: Exception | None = None
    mistake: Exception | None = None
    """One of our own, over this question alone."""
    dead: bool = False
    """Not this question has failed, but what all of them need."""
    truncated: bool = False
    unknown: bool = False
    """See `Embedded`."""
    embed: float = 0.0
    search: float = 0.0
    """Seconds."""


class Compared(msgspec.Struct, frozen=True):
    """Two answers, beside one another."""

    same: bool | None = None
    """Word for word; None where nothing can be said."""
    alike: float | None = None
    """Cosine of the two where they are not the same; of long ones, of their beginnings."""
    differs: str | None = None
    """In what they differ, however alike they are: the guard that says so, or `tools`."""
    texts: tuple[str, str] | None = None


class Check(msgspec.Struct, frozen=True):
    """What a real answer is to be compared with."""

    kind: Literal["shadow", "verify"]
    candidate: Candidate | None
    """None where nothing is stored that is like it."""
    entry: Entry | None = None
    """What was served; None where nothing was, and the store is to be asked."""


class Place(msgspec.Struct, frozen=True):
    """Where a question was asked, as far as a threshold may go by it."""

    upstream: str
    path: str
    namespace: str | None = None


class Inquiry:
    """One request's question: read when somebody wants it, embedded at most once."""

    __slots__ = (
        "_longest",
        "_read",
        "asked",
        "done",
        "embed",
        "failed",
        "near",
        "over",
        "place",
        "question",
        "ready",
        "reason",
        "scope",
        "search",
        "threshold",
        "verdict",
        "waiter",
    )

    def __init__(
        self, read: Callable[[], Question | None], place: Place, threshold: float, longest: int
    ) -> None:
        """`read`: tells the question, and holds the whole request until it has. `threshold`: cosine from
        which on an answer is used. `longest`: characters of a question."""
        self._read: Callable[[], Question | None] | None = read
        self._longest = longest
        self.place = place
        self.threshold = threshold
        self.question: Question | None = None
        """Once it was read; None where it is compared with nothing."""
        self.reason: str | None = None
        """Why it is compared with nothing."""
        self.scope = b""
        """Where the index has its like; empty until it was asked for."""
        self.asked = False
        """It has been given to the thread."""
        self.done = False
        """The thread has given it back."""
        self.failed = False
        """It was not looked for, because something failed."""
        self.near: Near | None = None
        self.verdict = NOTHING
        """What its search has found."""
        self.ready: list[Ready] = []
        """Who wants it for storing."""
        self.over: list[Callable[[], None]] = []
        """Who wants to hear that it is done."""
        self.waiter: asyncio.Future[Verdict] | None = None
        self.embed: float | None = None
        self.search: float | None = None
        """Seconds that this took."""

    def read(self) -> Question | None:
        """What is asked. The request is not held any longer then."""
        if self._read is not None:
            found, self._read = self._read(), None
            self.reason = "not_text" if found is None else unmatchable(found.text, self._longest)
            self.question = found if self.reason is None else None
        return self.question

    def forget(self) -> None:
        """Its answer is stored, or never will be."""
        if self._read is not None:
            self._read, self.reason = None, "unread"
        self.near = None
