"""Where answers come from, and what that means for reading requests: upstreams over HTTP here, an app of the
same process elsewhere."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from sidecar.core.dialects import Dialect, recognise
from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller, Question, caller, client_caller, question
from sidecar.core.types import Request
from sidecar.engine.pump import Live
from sidecar.engine.source import Call
from sidecar.serving import intake, pages
from sidecar.serving.clients import Client
from sidecar.serving.keys import Key, Keys, check_path, keyed
from sidecar.serving.own import RESERVED
from sidecar.serving.routes import Route, Routes
from sidecar.serving.shell import Arriving, Body

if TYPE_CHECKING:
    from sidecar.serving.asks import Asked


class Backend(Protocol):
    """Makes answers, and knows what of a request they depend on. One per process."""

    routes: Routes

    def check(self, request: Request, room: int = 0) -> None:
        """Raises RefusedError for what must not be passed on. `room`: bytes by which the head may exceed the
        limit."""

    def caller(self, request: Request, raw: Arriving | None, client: Client | None = None) -> Caller:
        """Who asks. `client`: whose token it came with; the request does not have it any more."""

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

    def __init__(
        self,
        routes: Routes,
        send: Callable[[Live, Call], None],
        secret: bytes,
        limit: int,
        *,
        keys: Keys,
        guarded: Callable[[], bool] = lambda: True,
        public: bool = False,
    ) -> None:
        """`send` makes a call; see `Hub.start`. `limit`: bytes of a request's target and headers. `guarded`:
        whether who asks is known before anything of this is; `public`: whether all may ask, by any name."""
        self.routes = routes
        self.keys = keys
        self._send = send
        self._secret = secret
        self._limit = limit
        self._guarded = guarded
        self._public = public

    def check(self, request: Request, room: int = 0) -> None:
        intake.check(request, self._limit + room, websockets=not request.path.startswith(RESERVED))
        if self._key(request) is None:
            return
        if request.method == "TRACE":
            raise RefusedError("method_not_allowed", "its answer would show the key of the upstream")
        check_path(request.target)
        if not self._guarded():
            pages.check(request, any_host=self._public)

    def caller(self, request: Request, raw: Arriving | None, client: Client | None = None) -> Caller:
        key = self._key(request)
        mark = key.mark if key is not None else b""
        if client is not None:
            alone = request.path.startswith(RESERVED)
            return client_caller(self._secret, client.token, client.namespace, request, key=mark, alone=alone)
        made = caller(self._secret, request)
        return msgspec.structs.replace(made, key=mark) if mark else made

    def _key(self, request: Request) -> Key | None:
        """The sidecar's key for a request, if there is one."""
        if not self.keys or request.path.startswith(RESERVED):
            return None
        return self.keys.of(self.routes.match(request))

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
        key, keep = self.keys.of(asked.route), live.ask.keep
        if keep is not None and keep.mark != (key.mark if key is not None else b""):
            # It was asked under a key that has been replaced since: what is stored for that is not this.
            live.ask = msgspec.structs.replace(live.ask, keep=None)
        self._send(live, self.authorized(asked.call(), asked.route, asked.dialect))

    def authorized(self, call: Call, route: Route, dialect: Dialect | None) -> Call:
        """The call with the sidecar's key instead of the client's credentials, if there is one for it."""
        key = self.keys.of(route)
        return keyed(call, key, dialect) if key is not None else call

    def queued(self, asked: "Asked", job: str) -> None:
        """All that it takes is on disk."""

    def unqueued(self, job: str) -> None:
        """Nothing was kept for it."""
