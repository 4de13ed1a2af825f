"""sidecar.web.proxy on an upstream made of a script: clients that share a call and leave at any step of it."""

import asyncio
from types import SimpleNamespace

import pytest

from sidecar.cache.exact import ExactCache
from sidecar.config import load
from sidecar.core.errors import UpstreamError
from sidecar.core.types import Fault
from sidecar.engine.answers import Answers
from sidecar.engine.hub import Hub
from sidecar.engine.shelf import Shelf
from sidecar.serving.asks import Asks
from sidecar.serving.calls import Calls
from sidecar.serving.follow import Follow
from sidecar.serving.front import Front
from sidecar.serving.inbound import Inbound
from sidecar.serving.routes import Routes
from sidecar.serving.siblings import Alone, Handing
from sidecar.web.again import Again
from sidecar.web.incoming import Incoming
from sidecar.web.proxy import Proxy
from tests.engine.rig import DONE, TIMINGS, ScriptedSource, pass_time, run, settled

BODY = b'{"model":"m","stream":true,"messages":[]}'
ONE = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
LOST = UpstreamError("upstream_closed", "it closed the connection before it answered")


class Client:
    """A connection with one request on it, as `web.incoming.Incoming` shows it, and what came back."""

    root = ""
    handed = False
    raised = False
    head, body = Incoming.head, Incoming.body

    def __init__(self, *fields: tuple[bytes, bytes]) -> None:
        self.method = "POST"
        self.target = "/v1/chat/completions"
        self.raw_headers = ((b"Host", b"h"), (b"Content-Length", b"%d" % len(BODY)), *fields)
        self.http10 = self.trailed = False
        self.keep_alive = self.body_exists = True
        self.content = SimpleNamespace(
            is_eof=lambda: True, exception=lambda: None, total_bytes=len(BODY), read_nowait=lambda: BODY
        )
        self.transport = self
        self.protocol = SimpleNamespace(
            writing_paused=False, transport=self, client_timeout=60.0, _upgraded=False
        )
        self.written = self.whole = b""
        self.closed = False
        self.task: asyncio.Task | None = None

    # The transport.

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def close(self) -> None:
        self.closed = True

    # The client.

    def leave(self) -> None:
        self.task.cancel()

    @property
    def answer(self) -> tuple[int, bytes]:
        """Status and body; the body of a stream with its chunks joined."""
        head, _, rest = self.written.partition(b"\r\n\r\n")
        status = int(head.split(b" ")[1])
        if b"Transfer-Encoding: chunked" not in head:
            return status, rest
        body = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            if not int(size, 16):
                assert rest == b"\r\n"
                return status, body
            body, rest = body + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
        return status, body + b"(cut)"


class Upstreams:
    """Each call waits at a door of its own, and then gets what the script has for it."""

    def __init__(self, *scripts: BaseException | list) -> None:
        self.scripts = [*scripts]
        self.doors = [asyncio.Event() for _ in scripts]
        self.sources = [ScriptedSource() for _ in scripts]
        self.calls = 0
        self.over = 0

    async def open(self, call, timings):
        number = self.calls
        self.calls += 1
        try:
            await self.doors[number].wait()
        except asyncio.CancelledError:
            self.over += 1
            raise
        timings.started, timings.connected = TIMINGS.started, TIMINGS.connected
        timings.sent, timings.head = TIMINGS.sent, TIMINGS.head
        script = self.scripts[number]
        if isinstance(script, BaseException):
            self.over += 1
            raise script
        return self.sources[number].give(*script)


class Stage:
    """A proxy on such upstreams."""

    def __init__(self, *scripts: BaseException | list, **keys: object) -> None:
        flags = {key.replace("__", "."): value for key, value in keys.items()}
        config = load(
            {"server.upstream": "http://upstream.test", "cache.ttl": 0, **flags}, environment={}
        ).config
        self.upstream = Upstreams(*scripts)
        self.faults: list[BaseException] = []
        self.lines: list[dict[str, object]] = []
        self.hub = Hub(self.upstream, self.faults.append, Shelf(600.0, 1 << 28))
        # No answer outlives its call, so nothing is looked up in a thread: this clock knows no threads.
        cache = ExactCache(0, self.faults.append, self.faults.append)
        answers = Answers(cache, self.hub, fresh_ids=False, paced=False)
        upstreams = Inbound(config, b"s" * 32).upstreams(Routes(config), self.hub.start)
        asks = Asks(config, upstreams, b"s" * 32, answers.count)
        follow = Follow(config, self.hub, b"s" * 32)
        calls = Calls(config, asks, self.hub, follow, answers)
        handing = Handing(Alone(), b"s" * 32)
        self.front = Front(
            config, upstreams, calls, None, None, handing, None, None, self.take, self.faults.append
        )
        again = Again(answers, b"s" * 32, frozenset(), None, self.take, self.faults.append)
        self.proxy = Proxy(config, self.front, again, self.take)
        self.clients: list[Client] = []

    def take(self, line, _aside):
        self.lines.append(line)

    def ask(self, *fields: tuple[bytes, bytes]) -> Client:
        client = Client(*fields)
        client.task = asyncio.ensure_future(self.proxy.handle(client))
        self.clients.append(client)
        return client

    def nothing_left(self) -> None:
        assert not self.faults
        assert len(self.hub) == 0
        assert self.hub._by_key == {} == self.hub._by_identity
        assert self.front.active == 0
        assert len(self.lines) == len(self.clients)
        assert (
            self.upstream.over + sum(source.closed for source in self.upstream.sources) == self.upstream.calls
        )
        self.hub.close()


WHOLE = (200, ONE + DONE)
STEPS = 45


async def play(stage, leaving, step, *, first=False, settle=True):
    """Four ask for the same, the doors open one after the other, and those who leave do so at that step."""

    async def leave():
        for _ in range(step):
            await asyncio.sleep(0)
        for number in leaving:
            stage.clients[number].leave()

    other = [asyncio.ensure_future(leave())] if first else []
    for _ in range(4):
        stage.ask()
    if not first:
        other = [asyncio.ensure_future(leave())]
    for door in stage.upstream.doors:
        for _ in range(15):
            await asyncio.sleep(0)
        door.set()
    await asyncio.gather(*[client.task for client in stage.clients], *other, return_exceptions=True)
    await settled()
    if settle:
        stage.nothing_left()


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("leaving", [[0], [1], [2], [3], [0, 1], [1, 2], [0, 1, 2], [1, 2, 3], [0, 1, 2, 3]])
def test_who_leaves_at_any_step_of_a_call_that_fails_takes_it_from_nobody(leaving, first):
    """36: the first call fails before its head, the next one does not."""

    async def main(step):
        stage = Stage(LOST, [ONE, DONE, b""])
        await play(stage, leaving, step, first=first)
        assert stage.upstream.calls <= 2
        stayed = [client for number, client in enumerate(stage.clients) if number not in leaving]
        answers = [client.answer for client in stayed]
        refused = [status for status, _ in answers if status == 502]
        # Only whoever made the call that failed gets its error.
        assert len(refused) == (0 not in leaving)
        assert [answer for answer in answers if answer[0] != 502] == [WHOLE] * (len(stayed) - len(refused))
        # Who left has nothing, or all of it.
        for number in leaving:
            written = stage.clients[number].written
            assert (
                not written
                or stage.clients[number].answer in (WHOLE, (200, ONE + DONE + b"(cut)"))
                or (stage.clients[number].answer[0] == 502 and number == 0)
            )

    for step in range(first, STEPS):  # a task that never began is nobody's request
        run(lambda step=step: main(step))


@pytest.mark.parametrize("leaving", [[], [0], [1], [3], [0, 1], [1, 2], [1, 2, 3], [0, 1, 2, 3]])
def test_when_the_new_call_fails_too_all_get_its_error(leaving):
    """36: two calls, and no deadlock, whoever leaves and when."""

    async def main(step):
        stage = Stage(LOST, LOST)
        await play(stage, leaving, step)
        assert stage.upstream.calls <= 2
        for number, client in enumerate(stage.clients):
            if number not in leaving:
                assert client.answer[0] == 502

    for step in range(STEPS if leaving else 1):
        run(lambda step=step: main(step))


@pytest.mark.parametrize("wish", ["cancel", "finish", "grace=5"])
@pytest.mark.parametrize("leaving", [[0], [1], [0, 1], [1, 2, 3], [0, 1, 2, 3]])
def test_who_leaves_at_any_step_is_one_line_whatever_becomes_of_the_call(leaving, wish):
    """23, 36: a call that is answered, and clients that leave it at every step."""

    async def main(step):
        stage = Stage([ONE, DONE, b""], disconnect__default=wish)
        await play(stage, leaving, step, settle=False)
        if wish == "grace=5":
            await pass_time(6)
        await settled()
        stage.nothing_left()
        assert stage.upstream.calls <= 1
        for number, client in enumerate(stage.clients):
            if number not in leaving:
                assert client.answer == WHOLE
        outcomes = {line["outcome"] for line in stage.lines}
        assert outcomes <= {"complete", "cancelled"}
        if wish == "finish" and stage.upstream.calls:
            assert stage.upstream.sources[0].closed == 1

    for step in range(STEPS - 15):
        run(lambda step=step: main(step))


@pytest.mark.parametrize(
    "kind", ["upstream_unreachable", "upstream_timeout", "upstream_protocol", "upstream_closed"]
)
def test_each_failure_before_the_head_is_worth_one_new_call(kind):
    async def main():
        stage = Stage(UpstreamError(kind, "x"), [ONE, DONE, b""])
        await play(stage, [], 0)
        assert stage.upstream.calls == 2
        assert [client.answer[0] for client in stage.clients] == [
            502 + 2 * (kind == "upstream_timeout"),
            200,
            200,
            200,
        ]
        assert [line["cache"] for line in stage.lines] == ["miss", "miss", "collapsed", "collapsed"]

    run(main)


def test_a_failure_that_is_not_the_upstreams_is_not_tried_again():
    """No descriptor is free: another attempt would need one as well."""

    async def main():
        stage = Stage(UpstreamError("overloaded", "x"), [ONE])
        await play(stage, [], 0)
        assert stage.upstream.calls == 1
        assert [client.answer[0] for client in stage.clients] == [503] * 4

    run(main)


def test_being_stopped_is_not_tried_again():
    async def main():
        stage = Stage([ONE], [ONE])
        for _ in range(3):
            stage.ask()
        await settled()
        stage.hub.stop(Fault("draining", "stopped"))
        await asyncio.gather(*[client.task for client in stage.clients])
        await settled()
        assert [client.answer[0] for client in stage.clients] == [503] * 3
        assert stage.upstream.calls == 1
        stage.nothing_left()

    run(main)


def test_a_call_that_fails_after_its_head_is_shared_as_it_is():
    async def main():
        stage = Stage([ONE, UpstreamError("upstream_closed", "x")], [ONE])
        await play(stage, [], 0)
        assert stage.upstream.calls == 1
        bodies = [client.answer[1] for client in stage.clients]
        assert len(set(bodies)) == 1
        assert bodies[0].startswith(ONE + b'data: {"error":')
        assert bodies[0].endswith(b"(cut)")
        assert {line["outcome"] for line in stage.lines} == {"truncated"}

    run(main)


def test_who_was_answered_early_is_told_in_the_stream_when_the_call_fails():
    """keepalive.early: 200 is out; what the upstream does not say can only be said inside the stream."""

    async def main():
        stage = Stage(LOST, [ONE, DONE, b""], keepalive__early=1)
        early = [stage.ask(), stage.ask()]
        await pass_time(2)
        late = stage.ask()
        await settled()
        stage.upstream.doors[0].set()
        await settled()
        stage.upstream.doors[1].set()
        await asyncio.gather(*[client.task for client in stage.clients])
        await settled()
        stage.nothing_left()
        for client in early:
            status, body = client.answer
            assert status == 200
            assert b'data: {"error":' in body
            assert body.endswith(b"(cut)")
        assert late.answer == WHOLE
        assert stage.upstream.calls == 2

    run(main)


def test_a_client_that_has_hung_up_on_the_terminal_marker_had_all_of_it_whoever_else_reads():
    """Many SDKs hang up there; that somebody else reads on does not make a whole answer a cancelled one."""

    async def main():
        stage = Stage([ONE, DONE])  # and the end of the body has yet to come
        stage.upstream.doors[0].set()
        for _ in range(2):
            stage.ask()
        await settled()
        for client in stage.clients:
            assert client.answer == (200, ONE + DONE + b"(cut)")
            client.leave()
            await settled()
        stage.nothing_left()
        assert [line["outcome"] for line in stage.lines] == ["complete", "complete"]

    run(main)
