"""What the sidecar itself answers: health, probes, streams that clients come back to, background jobs."""

import re
from urllib.parse import parse_qsl

import orjson

from sidecar.core.errors import RefusedError
from sidecar.core.fingerprint import Caller
from sidecar.core.ids import event_id
from sidecar.core.types import Fault, Request
from sidecar.engine.jobs import Jobs
from sidecar.engine.pump import Live
from sidecar.serving import intake
from sidecar.serving.follow import Follow
from sidecar.serving.probe import Probe
from sidecar.serving.shell import Reply
from sidecar.serving.visit import Visit

RESERVED = "/_slipstream/"
_ITEM = re.compile(RESERVED + r"(streams|jobs)/([^/]+)(/result)?")
_STOPPED = Fault("stopped", "it was stopped with DELETE")


class Own:
    """The paths under `/_slipstream/`."""

    def __init__(self, secret: bytes, follow: Follow, jobs: Jobs, probe: Probe) -> None:
        self._secret = secret
        self._follow = follow
        self._jobs = jobs
        self.probe = probe

    async def serve(self, visit: Visit, request: Request, caller: Caller, *, draining: bool) -> None:
        """Serve one request. Raises RefusedError, ClientGoneError."""
        if request.path == RESERVED + "healthz":
            _only(request, "GET", "HEAD")
            self._health(visit, draining=draining)
            return
        if request.path == RESERVED + "probe":
            _only(request, "GET")
            await self.probe.serve(visit, request)
            return
        found = _ITEM.fullmatch(request.path)
        if found is None:
            raise RefusedError("not_found", "this version has nothing at this path", close=False)
        kind, name, result = found.groups()
        _only(request, *(("GET",) if result else ("GET", "DELETE")))
        intake.patience(request.fields.get(b"slipstream-disconnect"))
        mine = caller.holds(self._secret, name) and (kind == "streams" or name[0] == "j")
        if not mine or (result and kind == "streams"):
            raise RefusedError("not_found", "no such id, or not for this credential", close=False)
        if kind == "streams":
            await self._stream(visit, request, caller, name)
        else:
            await self._job(visit, request, caller, name, result=result is not None)

    @staticmethod
    def _health(visit: Visit, *, draining: bool) -> None:
        code, phrase, state = (503, b"Service Unavailable", "draining") if draining else (200, b"OK", "ok")
        later = ((b"Retry-After", b"1"),) if draining else ()
        send_json(visit.reply, code, phrase, {"status": state}, *later)
        visit.logged = True  # health checks would drown the rest

    async def _stream(self, visit: Visit, request: Request, caller: Caller, name: str) -> None:
        if request.method == "DELETE":
            await self._stop(name)
            visit.trace.status, visit.trace.stream_id = 204, name
            visit.reply.start(204, b"No Content", (), sized=True)
            return
        live = await self._jobs.live(name) if name[0] == "j" else None
        live = live or self._follow.known(name)
        last = _last(request, name)
        number = _after(request, live) if last is None else self._follow.after(live, last)
        await self._follow.follow(visit, live, request, caller, number, resumed=True)

    async def _stop(self, name: str) -> None:
        if name[0] == "j":
            await self._jobs.cancel(name, _STOPPED)
        else:
            self._follow.stop(self._follow.known(name), _STOPPED)

    async def _job(self, visit: Visit, request: Request, caller: Caller, name: str, *, result: bool) -> None:
        if request.method == "DELETE":
            await self._jobs.cancel(name, _STOPPED)
        status = await self._jobs.status(name, visit.root)
        visit.trace.stream_id = name
        if not result:
            visit.trace.status = 200
            send_json(visit.reply, 200, b"OK", status)
            return
        live = await self._jobs.result(name)
        await self._follow.follow(visit, live, request, caller, plain=True)


def send_json(reply: Reply, code: int, phrase: bytes, value: object, *fields: tuple[bytes, bytes]) -> None:
    """Answer with a JSON document that nobody may keep."""
    body = orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE)
    head = [
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(body)),
        (b"Cache-Control", b"no-store"),
        *fields,
    ]
    reply.start(code, phrase, head, sized=True, body=body)


def _only(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise RefusedError("method_not_allowed", f"use {' or '.join(methods)}", close=False)


def _last(request: Request, name: str) -> int | None:
    """The last event that the client has, by its id. It goes before `after`: an EventSource whose URL has
    the one comes back with both. Raises RefusedError."""
    last = request.fields.get(b"last-event-id")
    if not last:
        return None
    found = event_id(last)
    if found is None or found[0] != name:
        raise RefusedError("not_found", "this stream has no such event", close=False)
    return found[1]


def _after(request: Request, live: Live) -> int:
    """How many events the client has, by its own count. Raises RefusedError."""
    text = dict(parse_qsl(request.query, keep_blank_values=True)).get("after", "0")
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) > len(live.recording.events):
        known = len(live.recording.events)
        raise RefusedError("bad_request", f"after: expected a number up to {known}", close=False)
    return int(text)
