"""An app of this process as the place where answers come from."""

import contextvars
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from sidecar.core import policy
from sidecar.core.dialects import APP, Dialect, recognise
from sidecar.core.fingerprint import (
    NAMESPACE,
    Caller,
    Question,
    caller_of,
    question,
    question_at,
)
from sidecar.core.types import Request
from sidecar.engine.hub import Hub
from sidecar.engine.pump import Live
from sidecar.serving import intake
from sidecar.serving.asks import Asked
from sidecar.serving.routes import Route, Routes
from sidecar.serving.shell import Arriving, Body
from sidecar.tables import Config, UpstreamTable
from sidecar_starlette.arriving import Arriving as Came
from sidecar_starlette.asgi import App, Scope
from sidecar_starlette.prompt import Prompt
from sidecar_starlette.run import Run
from sidecar_starlette.who import Who

_NOWHERE = UpstreamTable("app", "http://app", ["/"])
"""For what goes by path: terms of stored answers, thresholds, patience. Nothing is sent there."""
_ROOTS = 256
"""Mounts that are remembered: one with a parameter in its path may have any number."""
_PARTIAL = (b"range", b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since")
"""Fields that ask for less than the whole answer."""
_COUNTED = (b"host", b"origin")
_VARIES = frozenset({b"accept-encoding", *_COUNTED})
"""Fields on which an answer may depend: they count, or the app is not shown them."""
_NOBODY_S = frozenset({b"authorization", b"cookie"})
"""Those who share without a name have none of these."""
_ROUTED = ("app", "endpoint", "path_params", "route", "router")
"""What frameworks put in the scope, and middleware around this one may look at afterwards."""


class AppBackend:
    """See `sidecar.serving.backend.Backend`. One per process."""

    def __init__(
        self,
        app: App,
        hub: Hub,
        config: Config,
        secret: bytes,
        who: Who,
        prompt: Prompt | None,
        name: str,
    ) -> None:
        """`prompt`: where a request has its question. `name`: tells the app from others."""
        self._app = app
        self._hub = hub
        self._secret = secret
        self._who = who
        self._name = name
        self._prompt = prompt
        self.routes = Routes(config, [_NOWHERE])
        self._route = self.routes.everywhere
        self._by_root: dict[str, Route] = {}
        self._queued: dict[str, tuple[Scope, contextvars.Context]] = {}
        """Of jobs that were taken in this process, until they begin."""
        self.common: Mapping[str, Any] = {}
        """What the server says to all requests, for those that come from disk."""

    def check(self, request: Request, room: int = 0) -> None:
        """The app's server has."""

    def caller(self, request: Request, raw: Arriving | None, client: object = None) -> Caller:
        assert isinstance(raw, Came)
        found, raw.named = self._who.asks(request, raw.scope)
        raw.nobody = found is None
        return caller_of(self._secret, found)

    def route(self, request: Request, root: str) -> Route:
        found = self._by_root.get(root)
        if found is None:
            if len(self._by_root) >= _ROOTS:
                self._by_root.clear()
            found = msgspec.structs.replace(self._route, place=f"app {self._name} {root}")
            self._by_root[root] = found
        return found

    def dialect(self, request: Request, body: Body | None) -> Dialect:
        known = recognise(request.method, request.path)
        if known is None or body is None:
            return known or APP
        # Such a path may be an app's own; a model that is named is a sign of the known format.
        return known if intake.intent(known, request, body).model is not None else APP

    def counted(self, request: Request) -> Request:
        fields = request.fields
        # Under names of their own: what is known to be about something else does not count in keys.
        kept = {b"app-" + name: fields[name] for name in _COUNTED if name in fields}
        if NAMESPACE in fields:
            kept[NAMESPACE] = fields[NAMESPACE]
        if b"content-type" in fields:
            kept[b"app-type"] = fields[b"content-type"].partition(b";")[0].strip().lower()
        if policy.takes_ids({b"accept": fields.get(b"accept", b"")}):
            kept[b"app-events"] = b"1"  # it may decide between a stream and a whole answer
        if request.query:
            # Keys in it are left out of targets; here they may be about anything.
            kept[b"app-query"] = request.query.encode(errors="surrogateescape")
        return msgspec.structs.replace(request, fields=kept)

    def shared(self, request: Request, raw: Arriving | None) -> bool:
        if any(name in request.fields for name in _PARTIAL):
            return False
        # Where nobody has said what names a tenant, only those who have no name at all are taken for one.
        return isinstance(raw, Came) and (raw.named or raw.nobody)

    def question(
        self,
        scope: bytes,
        place: str,
        request: Request,
        body: bytes,
        dialect: Dialect,
        ignored: Sequence[str],
    ) -> Question | None:
        if self._prompt is None:
            return question(scope, place, request, body, dialect, ignored)
        where = self._prompt.where(body)
        return question_at(scope, place, request, body, where, ignored) if where is not None else None

    def asks(self, dialect: Dialect) -> bool:
        return self._prompt is not None or dialect.asks

    def start(self, live: Live, asked: Asked) -> None:
        raw = asked.raw if isinstance(asked.raw, Came) else None
        if raw is not None:
            scope, context = raw.scope, contextvars.copy_context()
        else:
            scope, context = self._taken(asked)
        varies = _VARIES | ({self._who.field} if self._who.field is not None else set())
        run = Run(
            self._app,
            self._hub,
            live,
            _inner(scope),
            asked.body,
            announces=policy.takes_ids(asked.request.fields),
            counted=varies if raw is not None and raw.named else varies | _NOBODY_S,
            context=context,
            on_head=lambda left: _hand_back(left, scope),
        )
        if raw is None or asked.detached:
            run.alone()
        else:
            raw.run = run

    def queued(self, asked: Asked, job: str) -> None:
        if isinstance(asked.raw, Came):
            scope = asked.raw.scope
            # As on disk: the preference has been met.
            headers = [field for field in scope["headers"] if bytes(field[0]) != b"prefer"]
            self._queued[job] = ({**scope, "headers": headers}, contextvars.copy_context())

    def unqueued(self, job: str) -> None:
        self._queued.pop(job, None)

    def _taken(self, asked: Asked) -> tuple[Scope, contextvars.Context]:
        """What a job runs with."""
        if asked.job is not None and asked.job in self._queued:
            return self._queued.pop(asked.job)
        return self._anew(asked.request)

    def _anew(self, request: Request) -> tuple[Scope, contextvars.Context]:
        """The scope of a job that was taken before this process began, from what is on disk of it."""
        path, _, query = request.target.partition(b"?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "scheme": "http",
            "root_path": "",
            "client": None,
            "server": None,
            **self.common,
            "method": request.method,
            "path": unquote(path.decode("latin-1")),
            "raw_path": path,
            "query_string": query,
            "headers": [(name.lower(), value) for name, value in request.headers],
        }
        return scope, contextvars.Context()


def _inner(scope: Scope) -> Scope:
    """The scope for the app: answers are recorded as they are, so they are compressed further out, if at
    all, and come through `send` and no other way."""
    headers = [field for field in scope["headers"] if bytes(field[0]) != b"accept-encoding"]
    extensions = {name: value for name, value in (scope.get("extensions") or {}).items() if name == "tls"}
    return {**scope, "headers": headers, "extensions": extensions}


def _hand_back(left: Scope, scope: Scope) -> None:
    for name in _ROUTED:
        if name in left:
            scope.setdefault(name, left[name])
