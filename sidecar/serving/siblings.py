"""Which of several worker processes a request is for.

A stream lives in the memory of the worker that began it, and its id names that worker. Background jobs are
one queue, which the first worker keeps. Whoever gets a request that another one has to answer hands it over.
"""

import re
from typing import Protocol

from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller
from sidecar.core.ids import event_id, worker_of
from sidecar.core.types import Request
from sidecar.serving import intake
from sidecar.serving.own import RESERVED
from sidecar.serving.shell import Arriving
from sidecar.serving.visit import Visit

JOBS = 0
"""The worker that keeps background jobs."""
HEADROOM = 1024
"""Bytes by which the head of a request may grow as it is handed over."""
_ID = re.compile(RESERVED + r"(?:streams|jobs)/([^/]+)(?:/result)?")


class Siblings(Protocol):
    """The workers of one sidecar, as one of them sees them."""

    number: int
    """Its own."""
    count: int
    """Of all."""

    async def hand_over(self, worker: int, visit: Visit, raw: Arriving, request: Request) -> bool:
        """Let another worker serve a request to its end; False if it is not there, or has ended before it
        said anything: the client has been sent nothing then.

        `request`: as it came. Raises RefusedError, ClientGoneError.
        """


class Alone:
    """See `Siblings`: there is one process."""

    number = 0
    count = 1

    async def hand_over(self, worker: int, visit: Visit, raw: Arriving, request: Request) -> bool:
        """Nobody is there."""
        del worker, visit, raw, request
        return False


class Handing:
    """Gives requests to whoever has to answer them."""

    def __init__(self, siblings: Siblings, secret: bytes) -> None:
        self._siblings = siblings
        self._secret = secret

    async def serve(self, visit: Visit, raw: Arriving, request: Request, caller: Caller) -> bool:
        """Have a request served, if it is for another worker; returns whether it was. Raises RefusedError,
        ClientGoneError."""
        worker = None if raw.handed else holder(self._siblings, self._secret, request, caller)
        if worker is None:
            return False
        # As it came: the other one looks for itself who asks.
        if not await self._siblings.hand_over(worker, visit, raw, raw.head()):
            found = _ID.fullmatch(request.path)
            if found[1][0] == "j" if found is not None else intake.preference(request) is not None:
                raise RefusedError("jobs_unavailable", "the worker that keeps them is being restarted")
            raise RefusedError("gone", "the worker that held the stream has ended; send the request again")
        return True


def holder(siblings: Siblings, secret: bytes, request: Request, caller: Caller) -> int | None:
    """The other worker that a request is for; None if this one can answer as well as any."""
    if siblings.count == 1:
        return None
    found = _ID.fullmatch(request.path)
    if found is not None:
        name: str | None = found[1]
    elif request.path.startswith(RESERVED):
        return None  # it is about this process
    elif intake.preference(request) is not None:
        return JOBS if siblings.number != JOBS else None
    else:
        event = event_id(request.fields.get(b"last-event-id", b""))
        name = event[0] if event is not None else None
    if name is None or not caller.holds(secret, name):
        return None
    worker = JOBS if name[0] == "j" else worker_of(name)
    # There may have been more workers when the id was made.
    return worker if worker != siblings.number and worker < siblings.count else None
