"""Where answers come from, and what that means for reading requests: upstreams over HTTP here, an app of the
same process elsewhere."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from sidecar.core.dialects import Dialect, recognise
from sidecar.core.fingerprint import Caller, Question, caller, question
from sidecar.core.types import Request
from sidecar.engine.pump import Live
from sidecar.engine.source import Call
from sidecar.serving import intake
from sidecar.serving.routes import Route, Routes
from sidecar.serving.shell import Arriving, Body

if TYPE_CHECKING:
    from sidecar.serving.asks import Asked


class Backend(Protocol):
    """Makes answers, and knows what of a request they depend on. One per process."""

    routes: Routes

    def check(self, request: Request) -> None:
        """Raises RefusedError for what must not be passed on."""

    def caller(self, request: Request, raw: Arriving) -> Caller:
        """Who asks."""

    def route(self, request: Request, root: str) -> Route | None:
        """Where it goes. `root`: see `Arriving`."""

    def dialect(self, request: Request, body: Body | None) -> Dialect | None:
        """The format that it speaks, as far as that can be told. `body`: None while it is not known."""

    def counted(self, request: Request) -> Request:
        """The same without the header fields on which its answer does not depend."""

    def shared(self, request: Request, raw: Arriving | None) -> bool:
        """Whether its answer may be given to an identical request. `raw`: None for a job."""

    def question(
        self,
        scope: bytes,
        place: str,
        request: Request,
        body: bytes,
        dialect: Dialect,
        ignored: Sequence[str],
    ) -> Question | None:
        """What is asked in words, and what else would have to be the same; `request` as `counted` has it."""

    def asks(self, dialect: Dialect) -> bool:
        """Whether requests in this format may be questions."""

    def start(self, live: Live, asked: "Asked") -> None:
        """Begin to make the answer of which `live` is the record. Raises RefusedError."""

    def queued(self, asked: "Asked", job: str) -> None:
        """It is going to be started later, as the job of that id, from what is on disk of it."""

    def unqueued(self, job: str) -> None:
        """The job of that id has ended, or was not taken."""


class Upstreams:
    """The upstreams that are configured."""

    def __init__(self, routes: Routes, send: Callable[[Live, Call], None], secret: bytes, limit: int) -> None:
        """`send` makes a call; see `Hub.start`. `limit`: bytes of a request's target and headers."""
        self.routes = routes
        self._send = send
        self._secret = secret
        self._limit = limit

    def check(self, request: Request) -> None:
        intake.check(request, self._limit)

    def caller(self, request: Request, raw: Arriving) -> Caller:
        return caller(self._secret, request)

    def route(self, request: Request, root: str) -> Route | None:
        return self.routes.match(request)

    def dialect(self, request: Request, body: Body | None) -> Dialect | None:
        return recognise(request.method, request.path)

    def counted(self, request: Request) -> Request:
        return request

    def shared(self, request: Request, raw: Arriving | None) -> bool:
        return True

    def question(
        self,
        scope: bytes,
        place: str,
        request: Request,
        body: bytes,
        dialect: Dialect,
        ignored: Sequence[str],
    ) -> Question | None:
        return question(scope, place, request, body, dialect, ignored)

    def asks(self, dialect: Dialect) -> bool:
        return dialect.asks

    def start(self, live: Live, asked: "Asked") -> None:
        self._send(live, asked.call())

    def queued(self, asked: "Asked", job: str) -> None:
        """All that it takes is on disk."""

    def unqueued(self, job: str) -> None:
        """Nothing was kept for it."""
