"""An app of this process as the place where answers come from."""

import contextvars
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import unquote

import msgspec

from sidecar.core import policy
from sidecar.core.dialects import APP, Dialect, recognise
from sidecar.core.fingerprint import (
    NAMESPACE,
    Caller,
    Question,
    caller,
    caller_of,
    credential,
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

Credential = str | Callable[[Scope], str | bytes | None]

_NOWHERE = UpstreamTable("app", "http://app", ["/"])
"""For what goes by path: terms of stored answers, thresholds, patience. Nothing is sent there."""
_ROOTS = 256
"""Mounts that are remembered: one with a parameter in its path may have any number."""
_WHO = re.compile(rb"auth|user|token|session|ident|principal|account|tenant|customer|api-?key|jwt|secret")
"""In the name of a field: it may say who asks, as proxies do that sign people in (`X-Forwarded-User`)."""
_NOBODY = frozenset({b"user-agent", b"sec-fetch-user", b"slipstream-tenant"})
_PARTIAL = (b"range", b"if-none-match", b"if-modified-since", b"if-match", b"if-unmodified-since")
"""Fields that ask for less than the whole answer."""
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
        tenant: Credential | None,
        prompt: Prompt | None,
    ) -> None:
        """`tenant`: what names who asks. `prompt`: where a request has its question."""
        self._app = app
        self._hub = hub
        self._secret = secret
        self._tenant = tenant
        self._field = tenant.lower().encode("latin-1") if isinstance(tenant, str) else None
        self._prompt = prompt
        self.routes = Routes(config, [_NOWHERE])
        self._route = self.routes.everywhere
        self._by_root: dict[str, Route] = {}
        self._queued: dict[str, tuple[Scope, contextvars.Context]] = {}
        """Of jobs that were taken in this process, until they begin."""
        self._most = config.jobs.queue + config.jobs.concurrency
        self.common: Mapping[str, Any] = {}
        """What the server says to all requests, for those that come from disk."""

    def check(self, request: Request) -> None:
        """The app's server has."""

    def caller(self, request: Request, raw: Arriving) -> Caller:
        tenant = self._tenant
        if tenant is None:
            return caller(self._secret, request)
        named: str | bytes | None
        if self._field is not None:
            named = request.fields.get(self._field)
        else:
            assert isinstance(raw, Came)
            assert callable(tenant)
            named = tenant(raw.scope)
        if isinstance(named, str):
            named = named.encode()
        if named is not None and not isinstance(named, bytes):
            raise TypeError(f"credential: expected a string, bytes or None, not {type(named).__name__}")
        return caller_of(self._secret, b"tenant %d:%b" % (len(named), named) if named else None)

    def route(self, request: Request, root: str) -> Route:
        found = self._by_root.get(root)
        if found is None:
            if len(self._by_root) >= _ROOTS:
                self._by_root.clear()
            found = msgspec.structs.replace(self._route, place=f"app {root}")
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
        kept = {name: fields[name] for name in (NAMESPACE, b"origin") if name in fields}
        if policy.takes_ids({b"accept": fields.get(b"accept", b"")}):
            # It may decide between a stream and a whole answer. Not under its own name: keys leave that out.
            kept[b"takes-events"] = b"1"
        return msgspec.structs.replace(request, fields=kept)

    def shared(self, request: Request, raw: Arriving | None) -> bool:
        if any(name in request.fields for name in _PARTIAL):
            return False
        if self._tenant is not None:
            return True
        # Nobody has said what names a tenant, so only those who have no name at all are taken for one.
        if credential(request) is not None or any(map(_may_say_who, request.fields)):
            return False
        scope = raw.scope if isinstance(raw, Came) else {}
        tls = (scope.get("extensions") or {}).get("tls") or {}
        return not getattr(scope.get("user"), "is_authenticated", False) and not tls.get("client_cert_name")

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
        raw = asked.raw
        if isinstance(raw, Came):
            scope, context = raw.scope, contextvars.copy_context()
        else:
            scope, context = self._taken(asked)
            raw = None
        run = Run(
            self._app,
            self._hub,
            live,
            _inner(scope),
            asked.body,
            announces=policy.takes_ids(asked.request.fields),
            context=context,
            on_head=lambda left: _hand_back(left, scope),
        )
        if raw is not None:
            raw.run = run
        else:
            run.alone()

    def queued(self, asked: Asked, job: str) -> None:
        if isinstance(asked.raw, Came):
            if len(self._queued) >= self._most:
                del self._queued[
                    next(iter(self._queued))
                ]  # one that was cancelled while it waited, most likely
            self._queued[job] = (asked.raw.scope, contextvars.copy_context())

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


def _may_say_who(name: bytes) -> bool:
    return _WHO.search(name) is not None and name not in _NOBODY


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
