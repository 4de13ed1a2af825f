"""sidecar_starlette.progress and the events it writes."""

import asyncio

import msgspec
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.events import event
from sidecar.core.spans import Spans
from sidecar_starlette.context import HERE, NOWHERE, Here
from sidecar_starlette.progress import progress
from sidecar_starlette.response import SidecarResponse

NAME = "A-Za-z0-9_.:-"


class Told:
    """A channel that keeps what it is given."""

    def __init__(self):
        self.frames = []

    async def event(self, frame):
        self.frames.append(frame)

    def done(self):
        self.frames.append(None)


@pytest.fixture
def told():
    channel = Told()
    token = HERE.set(Here(channel=channel))
    yield channel
    HERE.reset(token)


def data_of(frame):
    head, data, rest = frame.split(b"\n", 2)
    assert head == b"event: status" and data.startswith(b"data: ") and rest == b"\n"
    return orjson.loads(data[6:])


def test_an_event_is_its_name_and_its_data():
    assert event("a.B-1:_", {"text": "x\n\r\u2028\u00e9"}) == (
        'event: a.B-1:_\ndata: {"text":"x\\n\\r\u2028\u00e9"}\n\n'.encode()
    )


@given(st.from_regex(rf"[{NAME}]{{1,64}}", fullmatch=True), st.text() | st.lists(st.text()))
def test_an_event_has_three_line_ends(name, data):
    frame = event(name, data)
    assert frame.count(b"\n") == 3 and frame.endswith(b"\n\n") and b"\r" not in frame
    assert orjson.loads(frame.split(b"\n")[1].removeprefix(b"data: ")) == data


@pytest.mark.parametrize(
    "name", ["", "a b", "a\n", "a\ndata: x", "a\r", "\na", "a\0", "\u00e9", "\u0661", "x" * 65, 7, None, b"a"]
)
def test_a_name_that_is_none(name):
    with pytest.raises(ValueError, match="1 to 64 ASCII letters") as raised:
        event(name, {})
    assert len(str(raised.value)) < 200


@pytest.mark.parametrize("data", [object(), {1: 2}, {"deep": {"er": object}}, "\ud800", 1 << 70])
def test_data_that_is_no_json(data):
    with pytest.raises(TypeError, match=r"data of an event \(here\) cannot be written as JSON"):
        event("here", data)


async def test_outside_of_a_request_it_does_nothing():
    assert HERE.get() is NOWHERE
    await progress("nobody")


async def test_a_request_without_a_stream_hears_nothing():
    token = HERE.set(Here(spans=Spans()))
    await progress("nobody")
    HERE.reset(token)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, {"message": "m"}),
        ({"done": 0}, {"message": "m", "done": 0}),
        ({"total": 0.5}, {"message": "m", "total": 0.5}),
        ({"done": 3, "total": 12}, {"message": "m", "done": 3, "total": 12}),
    ],
)
async def test_what_it_says(told, given, found):
    await progress("m", **given)
    assert [data_of(frame) for frame in told.frames] == [found]


async def test_tasks_and_threads_of_a_request_find_its_stream(told):
    async def work(number):
        await progress("task", done=number)

    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(work(number))
    await asyncio.to_thread(asyncio.run, work(20))
    assert sorted(data_of(frame)["done"] for frame in told.frames) == list(range(21))


class Slow:
    """A client that takes each message in two steps, so that others could come in between."""

    def __init__(self):
        self.open = 0
        self.frames = []
        self.left = asyncio.Event()

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        assert not self.open, "two messages at once"
        self.open += 1
        await asyncio.sleep(0)
        self.open -= 1
        if message.get("body"):
            self.frames.append(message["body"])

    async def answer(self, pieces, **more):
        await SidecarResponse(pieces, **more)({"type": "http"}, self.receive, self.send)


async def test_parallel_tasks_and_the_answer_come_one_after_the_other():
    client = Slow()

    async def work(number):
        for step in range(10):
            await progress(str(number), done=step)

    async def pieces():
        async with asyncio.TaskGroup() as group:
            for number in range(10):
                group.create_task(work(number))
            for _ in range(20):
                yield "x"

    await client.answer(pieces())
    said = [data_of(frame) for frame in client.frames if frame.startswith(b"event: status")]
    for number in range(10):
        assert [one["done"] for one in said if one["message"] == str(number)] == list(range(10))
    assert client.frames.count(b'event: token\ndata: {"text":"x"}\n\n') == 20
    assert len(client.frames) == 121 and client.frames[-1] == b"event: done\ndata: {}\n\n"


async def test_it_says_nothing_after_the_end():
    client, over, late = Slow(), asyncio.Event(), []

    async def lasting():
        await over.wait()
        await progress("late")
        assert HERE.get().channel is not None

    async def pieces():
        late.append(asyncio.create_task(lasting()))
        yield "x"
        yield "done", {}
        await progress("never reached")

    await client.answer(pieces())
    over.set()
    await late[0]
    assert HERE.get() is NOWHERE
    assert client.frames == [b'event: token\ndata: {"text":"x"}\n\n', b"event: done\ndata: {}\n\n"]


@pytest.mark.parametrize("last", ["done", "error", "return", "raise"])
async def test_it_says_nothing_while_the_iterator_is_closed(last):
    client = Slow()

    async def pieces():
        try:
            if last == "raise":
                raise LookupError
            if last != "return":
                yield last, {}
        finally:
            if last in {"done", "error"}:
                await progress("closing")

    if last == "raise":
        with pytest.raises(LookupError):
            await client.answer(pieces())
    else:
        await client.answer(pieces())
    assert len(client.frames) == 1


@pytest.mark.parametrize("leaves", ["receive", "send"])
async def test_a_client_that_has_left_raises_nothing(leaves):
    client, asked, said = Slow(), asyncio.Event(), []

    async def send(message):
        if client.frames and leaves == "send":
            raise ConnectionResetError
        await client.send(message)

    async def pieces():
        yield "x"
        try:
            asked.set()
            await progress("a")
            await asyncio.Event().wait()
        finally:
            await progress("b")
            said.append("b")

    response = SidecarResponse(pieces())
    running = asyncio.create_task(response({"type": "http"}, client.receive, send))
    await asked.wait()
    if leaves == "receive":
        client.left.set()
    await running
    assert said == ["b"]
    assert [frame for frame in client.frames if b'"b"' in frame] == []


async def test_a_sync_iterator_has_the_stream_too():
    client, found = Slow(), []

    def pieces():
        found.append(HERE.get().channel)
        yield "x"

    await client.answer(pieces())
    assert found[0] is not None


async def test_the_channel_of_a_middleware_is_left_alone(told):
    client, spans = Slow(), Spans()
    token = HERE.set(msgspec.structs.replace(HERE.get(), spans=spans))
    found = []

    async def pieces():
        found.append(HERE.get())
        await progress("to the middleware")
        yield "x"

    await client.answer(pieces())
    HERE.reset(token)
    assert found == [Here(spans, told)]
    assert len(told.frames) == 2 and len(client.frames) == 2
    assert told.frames[-1] is None  # it was told that nothing follows


async def test_the_spans_of_the_request_stay():
    client, spans, found = Slow(), Spans(), []
    token = HERE.set(Here(spans=spans))

    async def pieces():
        found.append(HERE.get())
        yield "x"

    await client.answer(pieces())
    assert HERE.get() == Here(spans=spans)
    HERE.reset(token)
    assert found[0].spans is spans and found[0].channel is not None
