"""sidecar_starlette.response: by plain ASGI calls where order matters, and by uvicorn on real sockets."""

import asyncio
import contextlib
import contextvars
import re
import socket
import threading

import anyio
import httpx
import httpx_sse
import orjson
import pytest
import uvicorn
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.routing import Route

from sidecar_starlette.context import HERE, NOWHERE
from sidecar_starlette.progress import progress
from sidecar_starlette.response import SidecarResponse

EVENT = re.compile(rb"event: ([A-Za-z0-9_.:-]+)\ndata: ([^\r\n]*)\n\n")
FAILED = ("error", {"error": {"type": "internal_error", "message": "the answer could not be completed"}})
DONE = ("done", {})


class Client:
    """The other end of a plain ASGI call."""

    def __init__(self, *, breaks_at=None, error=OSError):
        self.messages = []
        self.left = asyncio.Event()
        self.receiving = 0
        self.received = 0
        self.breaks_at, self.error = breaks_at, error

    async def receive(self):
        assert self.messages, "received before the start was sent"
        assert not self.receiving, "two receive calls at once"
        self.receiving += 1
        self.received += 1
        try:
            if self.received == 1:
                return {"type": "http.request", "body": b"", "more_body": False}
            await self.left.wait()
        finally:
            self.receiving -= 1
        return {"type": "http.disconnect"}

    async def send(self, message):
        if self.breaks_at is not None and len(self.messages) >= self.breaks_at:
            raise self.error
        self.messages.append(message)

    async def answer(self, pieces, **more):
        tasks = asyncio.all_tasks()
        try:
            await SidecarResponse(pieces, **more)({"type": "http"}, self.receive, self.send)
        finally:
            assert asyncio.all_tasks() == tasks, "tasks are left over"
            assert HERE.get() is NOWHERE

    @property
    def events(self):
        found = []
        for message in self.messages[1:]:
            if message["body"]:
                name, data = EVENT.fullmatch(message["body"]).groups()  # a message is one event, and whole
                found.append((name.decode(), orjson.loads(data)))
        return found

    @property
    def ended(self):
        assert all(message["more_body"] for message in self.messages[1:-1])
        return len(self.messages) > 1 and not self.messages[-1]["more_body"]


def tokens(*texts):
    return [("token", {"text": text}) for text in texts]


def joined(events):
    return "".join(data["text"] for name, data in events if name == "token")


async def each(*pieces):
    for piece in pieces:
        yield piece


class Pieces:
    """An async iterator that is no generator; says what was asked of it. `hold`: the last one never comes."""

    def __init__(self, *pieces, hold=False):
        self.pieces = list(pieces)
        self.hold = hold
        self.asked = 0
        self.closed = 0
        self.waiting = asyncio.Event()
        self.cancelled = False

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.asked += 1
        if not self.pieces:
            if not self.hold:
                raise StopAsyncIteration
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        piece = self.pieces.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    async def aclose(self):
        for _ in range(5):
            await asyncio.sleep(0)  # a clean-up that waits is not to be interrupted
        self.closed += 1


# ---- what is sent


async def test_the_head():
    client = Client()
    await client.answer(each(), status_code=201, headers={"X-Mine": "1", "Content-Length": "7"})
    assert client.messages[0] == {
        "type": "http.response.start",
        "status": 201,
        "headers": [
            (b"x-mine", b"1"),
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ],
    }
    assert client.events == [DONE] and client.ended


def test_given_headers_are_kept():
    response = SidecarResponse(each(), headers={"cache-control": "no-store", "X-ACCEL-Buffering": "yes"})
    assert response.headers.getlist("Cache-Control") == ["no-store"]
    assert response.headers.getlist("X-Accel-Buffering") == ["yes"]


async def test_text_and_events_in_their_order():
    client = Client()
    await client.answer(
        each("a", "", b"b", b"", {"event": "sources", "data": [1]}, ("x.y", None), "line\n\ndata: x"),
        meta={"model": "m"},
    )
    assert client.events == [
        ("meta", {"model": "m"}),
        *tokens("a", "b"),
        ("sources", [1]),
        ("x.y", None),
        *tokens("line\n\ndata: x"),
        DONE,
    ]
    assert client.ended


async def test_meta_is_sent_before_the_first_piece_is_asked_for():
    client = Client()

    async def pieces():
        assert client.events == [("meta", {})]
        yield "x"

    await client.answer(pieces(), meta={})
    assert client.events == [("meta", {}), *tokens("x"), DONE]


async def test_each_piece_is_sent_before_the_next_is_asked_for():
    client = Client()

    async def pieces():
        for number in range(5):
            assert client.events == tokens(*"01234"[:number])
            yield str(number)

    await client.answer(pieces())
    assert client.ended


async def test_a_slow_client_is_waited_for():
    client, go, sending, pieces = Client(), asyncio.Event(), asyncio.Event(), Pieces("a", "b")

    async def send(message):
        if message.get("body"):
            sending.set()
            await go.wait()
        await client.send(message)

    task = asyncio.create_task(SidecarResponse(pieces)({"type": "http"}, client.receive, send))
    await sending.wait()
    assert pieces.asked == 1
    go.set()
    await task
    assert client.events == [*tokens("a", "b"), DONE]


@st.composite
def cuts(draw):
    text = draw(st.text(min_size=1))
    body = text.encode()
    places = sorted(draw(st.lists(st.integers(0, len(body)))))
    return text, [body[a:b] for a, b in zip([0, *places], [*places, len(body)], strict=True)]


@given(cuts(), st.booleans())
def test_text_cut_at_any_byte_is_the_same_text(case, events_between):
    text, pieces = case
    if events_between:
        pieces = [piece for part in pieces for piece in (part, ("status", {}), "")]

    async def run():
        client = Client()
        await client.answer(each(*pieces))
        assert joined(client.events) == text
        assert client.events[-1] == DONE and client.ended

    asyncio.run(run())


@given(st.lists(st.binary()))
def test_bytes_that_are_no_text_are_replaced_as_in_the_whole(pieces):
    async def run():
        client = Client()
        await client.answer(each(*pieces))
        assert joined(client.events) == b"".join(pieces).decode("utf-8", "replace")
        assert all(data["text"] for name, data in client.events if name == "token")

    asyncio.run(run())


@given(st.lists(st.text(st.characters(categories=["Cs", "Lu"])) | st.binary()))
def test_any_text_gives_events(pieces):
    async def run():
        client = Client()
        await client.answer(each(*pieces))
        assert client.events[-1] == DONE and client.ended

    asyncio.run(run())


@pytest.mark.parametrize(
    ("pieces", "texts"),
    [
        ([b"\xe2\x82", b"\xac"], ["€"]),
        ([b"\xe2\x82", "", b"\xac"], ["€"]),
        ([b"\xe2\x82", "x", b"\xac"], ["\ufffdx", "\ufffd"]),
        ([b"a\xe2\x82"], ["a", "\ufffd"]),
        ([b"\xff", b"b"], ["\ufffd", "b"]),
        (["\ud83d", "\ude00", "\ud83d\ude00", "a\ud83d"], ["\ufffd", "\ufffd", "😀", "a\ufffd"]),
    ],
)
async def test_halves_of_characters(pieces, texts):
    client = Client()
    await client.answer(each(*pieces))
    assert client.events == [*tokens(*texts), DONE]


# ---- the end


@pytest.mark.parametrize("last", [("done", {"usage": 1}), {"event": "done", "data": {"usage": 1}}])
async def test_nothing_comes_after_done(last):
    client, pieces = Client(), Pieces(b"\xe2", last, "more")
    await client.answer(pieces)
    assert client.events == [*tokens("\ufffd"), ("done", {"usage": 1})]
    assert client.ended
    assert (pieces.asked, pieces.closed) == (2, 1)


async def test_the_client_has_its_end_before_a_generator_is_closed():
    client, seen = Client(), []

    async def pieces():
        try:
            yield "done", {}
        finally:
            await asyncio.sleep(0)
            seen.append(client.ended)

    await client.answer(pieces())
    assert seen == [True]


async def test_an_error_event_is_the_last_one():
    client, pieces, ran = Client(), Pieces("a", ("error", {"why": "said by the app"}), "b"), []
    await client.answer(pieces, background=BackgroundTask(ran.append, 1))
    assert client.events == [*tokens("a"), ("error", {"why": "said by the app"})]
    assert client.ended and not ran
    assert (pieces.asked, pieces.closed) == (2, 1)


@pytest.mark.parametrize(
    "error",
    [
        LookupError("hunter2"),
        ConnectionResetError("hunter2"),
        asyncio.CancelledError("hunter2"),
        TimeoutError(),
        ExceptionGroup("hunter2", [ValueError()]),
    ],
)
async def test_a_failure(error):
    client, pieces, ran = Client(), Pieces("a", error, "b"), []
    with pytest.raises(type(error)) as raised:
        await client.answer(pieces, background=BackgroundTask(ran.append, 1))
    if not isinstance(error, asyncio.CancelledError):  # asyncio makes a new one of it
        assert raised.value is error
    assert client.events == [*tokens("a"), FAILED]
    assert not client.ended and not ran and pieces.closed == 1
    assert b"hunter2" not in b"".join(message.get("body", b"") for message in client.messages)


@pytest.mark.parametrize(
    "piece",
    [
        *(7, None, object(), bytearray(b"x"), ["a", 1], ("a",), ("a", 1, 2), (1, 2)),
        *({}, {"event": "x"}, {"event": 1, "data": 2}, {"event": "x", "data": 1, "id": 2}),
    ],
)
async def test_a_piece_that_is_none(piece):
    client, pieces = Client(), Pieces("a", piece)
    with pytest.raises(TypeError, match=rf"is a str, bytes, .*not this {type(piece).__name__}"):
        await client.answer(pieces)
    assert client.events == [*tokens("a"), FAILED] and not client.ended and pieces.closed == 1


@pytest.mark.parametrize("name", ["", "a\ndata: injected", "a\n\nevent: b", "a b", "ä", "a" * 65])
async def test_names_cannot_inject(name):
    client, pieces = Client(), Pieces((name, {}))
    with pytest.raises(ValueError, match="an event's name"):
        await client.answer(pieces)
    assert client.events == [FAILED] and pieces.closed == 1


@pytest.mark.parametrize("piece", [("x", object()), ("done", {1: 2})])
async def test_data_that_is_no_json_is_a_failure(piece):
    client, pieces = Client(), Pieces(piece)
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        await client.answer(pieces)
    assert client.events == [FAILED] and not client.ended and pieces.closed == 1


@pytest.mark.parametrize("content", ["text", b"text", {"event": "x"}, 7, None])
def test_content_that_is_no_iterator(content):
    with pytest.raises(TypeError, match="iterator of its pieces"):
        SidecarResponse(content)


def test_meta_that_is_no_json_is_refused_at_once():
    with pytest.raises(TypeError, match=r"\(meta\)"):
        SidecarResponse(each(), meta={"x": object()})


async def test_an_error_of_closing_comes_out():
    async def pieces():
        try:
            yield "done", {}
        finally:
            raise LookupError("closing")

    client = Client()
    with pytest.raises(LookupError, match="closing"):
        await client.answer(pieces())
    assert client.events == [DONE] and client.ended


async def test_background_runs_after_a_whole_answer():
    client, seen = Client(), []
    pieces = Pieces("a")

    async def after():
        seen.append((client.ended, pieces.closed, HERE.get()))

    await client.answer(pieces, background=BackgroundTask(after))
    assert seen == [(True, 1, NOWHERE)]


async def test_background_runs_when_the_client_leaves_with_the_last_event():
    """Servers say `http.disconnect` as soon as a response is complete, and clients leave once they have it."""
    client, ran = Client(), []

    async def send(message):
        await client.send(message)
        if message.get("more_body") is False:
            client.left.set()
            for _ in range(5):
                await asyncio.sleep(0)

    async def pieces():
        try:
            yield "done", {}
        finally:
            await asyncio.sleep(0)
            ran.append("closed")

    response = SidecarResponse(pieces(), background=BackgroundTask(ran.append, "background"))
    await response({"type": "http"}, client.receive, send)
    assert ran == ["closed", "background"]


# ---- clients that leave


async def test_a_client_that_leaves_cancels_what_is_waited_for():
    client, pieces, ran = Client(), Pieces("a", hold=True), []
    task = asyncio.create_task(client.answer(pieces, background=BackgroundTask(ran.append, 1)))
    await pieces.waiting.wait()
    client.left.set()
    await task
    assert pieces.cancelled and pieces.closed == 1 and not ran
    assert client.events == tokens("a") and not client.ended


async def test_a_client_that_leaves_while_it_is_sent_to():
    client, sending, pieces = Client(), asyncio.Event(), Pieces("a", "b")

    async def send(message):
        if message.get("body"):
            sending.set()
            await asyncio.Event().wait()
        await client.send(message)

    task = asyncio.create_task(SidecarResponse(pieces)({"type": "http"}, client.receive, send))
    await sending.wait()
    client.left.set()
    await task
    assert (pieces.asked, pieces.closed) == (1, 1)


@pytest.mark.parametrize("breaks_at", range(5))
@pytest.mark.parametrize("error", [OSError, BrokenPipeError])
async def test_a_send_that_says_so(breaks_at, error):
    client, pieces, ran = Client(breaks_at=breaks_at, error=error), Pieces("a", "b"), []
    await client.answer(pieces, background=BackgroundTask(ran.append, 1))  # start, a, b, done, the end
    assert len(client.messages) == breaks_at and pieces.closed == 1 and not ran
    assert pieces.asked == [0, 1, 2, 3, 3][breaks_at]


async def test_the_clean_up_of_a_generator_may_wait():
    client, waiting, steps = Client(), asyncio.Event(), []

    async def pieces():
        try:
            yield "a"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            for step in range(5):
                await asyncio.sleep(0)
                steps.append(step)

    task = asyncio.create_task(client.answer(pieces()))
    await waiting.wait()
    client.left.set()
    await task
    assert steps == [0, 1, 2, 3, 4]


async def test_a_generator_that_clings_to_life_is_heard_no_more():
    client, waiting, closed = Client(), asyncio.Event(), []

    async def pieces():
        try:
            yield "a"
            waiting.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield "b"
            yield "never reached"
        finally:
            closed.append(True)

    task = asyncio.create_task(client.answer(pieces()))
    await waiting.wait()
    client.left.set()
    await task
    assert client.events == tokens("a") and not client.ended and closed


async def test_a_receive_that_fails_is_heard_of():
    client, pieces = Client(), Pieces("a", hold=True)

    async def receive():
        raise LookupError("no such client")

    with pytest.raises(LookupError, match="no such client"):
        await SidecarResponse(pieces)({"type": "http"}, receive, client.send)
    assert pieces.closed == 1


async def test_cancellation_closes_everything():
    client, pieces, ran = Client(), Pieces("a", hold=True), []
    task = asyncio.create_task(client.answer(pieces, background=BackgroundTask(ran.append, 1)))
    await pieces.waiting.wait()
    task.cancel("by the server")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert pieces.cancelled and pieces.closed == 1 and not client.ended and not ran
    assert client.events == tokens("a")


async def test_a_failure_is_heard_of_when_the_client_leaves_before_it_is_told():
    client, stuck, failing, others = Client(), asyncio.Event(), asyncio.Event(), []

    async def send(message):
        if b"status" in message.get("body", b""):
            stuck.set()
            await asyncio.Event().wait()
        await client.send(message)

    async def pieces():
        others.append(asyncio.create_task(progress("holds the stream")))
        await stuck.wait()
        failing.set()
        yield "a"[5]

    task = asyncio.create_task(SidecarResponse(pieces())({"type": "http"}, client.receive, send))
    await failing.wait()
    client.left.set()
    with pytest.raises(IndexError):
        await task
    others[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await others[0]
    assert not client.events


async def test_nothing_is_sent_once_it_was_cancelled():
    client, waiting, over, others = Client(), asyncio.Event(), asyncio.Event(), []

    async def other():
        await over.wait()
        await progress("late")

    async def pieces():
        others.append(asyncio.create_task(other()))
        waiting.set()
        yield await asyncio.Event().wait()

    task = asyncio.create_task(SidecarResponse(pieces())({"type": "http"}, client.receive, client.send))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    client.messages.append("none after this")
    over.set()
    await others[0]
    assert client.messages[1:] == ["none after this"]


@pytest.mark.parametrize("left", [True, False])
async def test_cancelled_again_while_it_ends(left):
    client, waiting, closing, go, steps = Client(), asyncio.Event(), asyncio.Event(), asyncio.Event(), []

    async def pieces():
        try:
            waiting.set()
            yield await asyncio.Event().wait()
        finally:
            closing.set()
            await go.wait()
            steps.append("closed")

    task = asyncio.create_task(client.answer(pieces()))
    await waiting.wait()
    client.left.set() if left else task.cancel()
    await closing.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["closed"]


async def test_cancel_scopes_around_and_inside():
    client, steps = Client(), []

    async def pieces():
        try:
            with anyio.move_on_after(0):
                await anyio.sleep_forever()
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                yield "a"
                scope.cancel()
                await anyio.sleep_forever()
        finally:
            await asyncio.sleep(0)
            steps.append("closed")

    with anyio.CancelScope() as scope:
        await client.answer(pieces())
    assert scope.cancelled_caught and steps == ["closed"] and client.events == tokens("a")


async def test_one_task_and_one_context_for_all_of_a_generator():
    client, variable, tasks = Client(), contextvars.ContextVar("v", default=0), set()

    async def pieces():
        try:
            for number in range(3):
                assert variable.get() == number
                variable.set(number + 1)
                tasks.add(asyncio.current_task())
                yield "a"
            yield "done", {}
        finally:
            assert variable.get() == 3
            tasks.add(asyncio.current_task())

    await client.answer(pieces())
    assert len(tasks) == 1


# ---- iterators that are not async


async def test_a_sync_iterator_runs_in_threads():
    client, threads = Client(), []

    def pieces():
        for number in range(3):
            assert client.events == tokens(*"012"[:number])
            assert HERE.get().channel is not None
            threads.append(threading.current_thread())
            yield str(number)

    await client.answer(pieces())
    assert client.events == [*tokens("0", "1", "2"), DONE]
    assert threading.current_thread() not in threads


async def test_a_list_will_do():
    client = Client()
    await client.answer(["a", ("x", 1)])
    assert client.events == [*tokens("a"), ("x", 1), DONE] and client.ended


async def test_a_sync_iterator_that_fails():
    client = Client()

    def pieces():
        yield "a"
        raise LookupError("hunter2")

    with pytest.raises(LookupError, match="hunter2"):
        await client.answer(pieces())
    assert client.events == [*tokens("a"), FAILED] and not client.ended


@pytest.mark.parametrize("how", ["left", "cancelled", "done"])
async def test_a_sync_iterator_stops_after_its_piece(how):
    client, loop = Client(), asyncio.get_running_loop()
    inside, go, steps = asyncio.Event(), threading.Event(), []

    def pieces():
        try:
            yield "a"
            if how == "done":
                yield "done", {}
            loop.call_soon_threadsafe(inside.set)
            go.wait()
            steps.append("piece")
            yield "b"
            steps.append("never reached")
        finally:
            steps.append("closed")

    task = asyncio.create_task(client.answer(pieces()))
    if how == "done":
        await task
        assert steps == ["closed"]
        return
    await inside.wait()
    if how == "left":
        client.left.set()
    else:
        task.cancel()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with contextlib.nullcontext() if how == "left" else pytest.raises(asyncio.CancelledError):
        await task
    assert steps == ["piece", "closed"] and client.events == tokens("a")


# ---- on a real server


@contextlib.asynccontextmanager
async def serving(*routes):
    config = uvicorn.Config(Starlette(routes=routes), log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - uvicorn has nothing to wait for
            await asyncio.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


def route(make):
    async def endpoint(request):
        return make()

    return Route("/", endpoint)


async def read(url):
    async with (
        httpx.AsyncClient(trust_env=False) as http,
        httpx_sse.aconnect_sse(http, "GET", url) as source,
    ):
        return [(one.event, one.json()) async for one in source.aiter_sse()]


async def test_an_independent_parser_reads_it():
    async def pieces():
        for byte in "Grüße,\r\n\u2028😀".encode():
            await progress("a byte", done=byte)
            yield bytes([byte])
        yield "sources", [{"title": "a\nb"}]

    async with serving(route(lambda: SidecarResponse(pieces(), meta={"id": "1"}))) as url:
        events = await read(url)
    assert events[0] == ("meta", {"id": "1"})
    assert joined(events) == "Grüße,\r\n\u2028😀"
    assert [data["done"] for name, data in events if name == "status"] == list("Grüße,\r\n\u2028😀".encode())
    assert events[-2:] == [("sources", [{"title": "a\nb"}]), DONE]


async def test_a_piece_arrives_before_the_next_exists():
    go = asyncio.Event()

    async def pieces():
        yield "a"
        await go.wait()
        yield "b"

    async with (
        serving(route(lambda: SidecarResponse(pieces()))) as url,
        httpx.AsyncClient(trust_env=False) as http,
        httpx_sse.aconnect_sse(http, "GET", url) as source,
    ):
        events = source.aiter_sse()
        assert (await anext(events)).json() == {"text": "a"}
        go.set()
        assert [one.event async for one in events] == ["token", "done"]


async def test_a_broken_answer_does_not_look_whole():
    async def pieces():
        yield "a"
        raise LookupError("hunter2")

    body = b""
    async with (
        serving(route(lambda: SidecarResponse(pieces()))) as url,
        httpx.AsyncClient(trust_env=False) as http,
        http.stream("GET", url) as response,
    ):
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete chunked read"):
            async for chunk in response.aiter_raw():
                body += chunk
    assert [name for name, _ in EVENT.findall(body)] == [b"token", b"error"]
    assert b"hunter2" not in body


@pytest.mark.parametrize("waits", ["piece", "send"])
async def test_a_client_that_closes_its_socket_stops_the_iterator(waits):
    over, ran = asyncio.Event(), []

    async def pieces():
        try:
            yield "a"
            while waits == "send":
                yield "x" * 100_000  # until the client, who does not read, is waited for
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            over.set()

    make = route(lambda: SidecarResponse(pieces(), background=BackgroundTask(ran.append, 1)))
    async with serving(make) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b'"a"')
        writer.transport.abort()
        await over.wait()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    assert not ran


async def test_a_connection_is_used_again_after_a_whole_answer():
    ran = []
    make = route(lambda: SidecarResponse(each("a"), background=BackgroundTask(ran.append, 1)))
    async with serving(make) as url, httpx.AsyncClient(trust_env=False) as http:
        for _ in range(3):
            response = await http.get(url)
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert "content-length" not in response.headers
            assert response.text.endswith("event: done\ndata: {}\n\n")
    assert ran == [1, 1, 1]
