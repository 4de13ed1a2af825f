"""SidecarMiddleware: `span` in an app's own code."""

import asyncio
import time

import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from sidecar_starlette import SidecarResponse, progress, span
from tests.plugin.rig import said, soon

POST = ["POST"]


def at(endpoint, path="/chat"):
    return Route(path, endpoint, methods=POST)


async def phases(served, number=0):
    line = await soon(served.lines.request(number))
    return {name: value for name, value in line["phases"].items() if name not in OWN}


OWN = {f"{name}_ms" for name in ("read", "lookup", "embed", "search", "connect", "upstream", "store")}


def timing(client):
    parts = (part.strip().partition(";dur=") for part in client.headers["server-timing"].split(","))
    return {name: float(ms) for name, _, ms in parts}


async def test_spans_are_in_the_line_and_the_head(serve):
    async def pieces():
        with span("late"):
            yield said(1)

    async def endpoint(request):
        with span("outer"):
            with span("inner"):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
        return StreamingResponse(pieces(), media_type="text/event-stream")

    served = await serve([at(endpoint)])
    client = await served.ask()
    found = await phases(served)
    assert list(found) == ["outer_ms", "inner_ms", "late_ms"]
    assert found["outer_ms"] > found["inner_ms"] >= 9 and found["late_ms"] >= 0
    said_of = timing(client)
    assert said_of["outer"] == pytest.approx(found["outer_ms"], abs=0.01) and "late" not in said_of
    assert said_of["upstream"] >= said_of["outer"]
    hit = await served.ask()
    assert await phases(served, 1) == {} and "outer" not in timing(hit)


async def test_spans_of_one_name_side_by_side(serve):
    async def one():
        with span("part"):
            await asyncio.sleep(0.05)

    async def endpoint(request):
        await asyncio.gather(*(one() for _ in range(20)))
        return JSONResponse({})

    served = await serve([at(endpoint)])
    await served.ask()
    assert 49 <= (await phases(served))["part_ms"] < 500  # not 1000


async def test_spans_in_threads(serve):
    def endpoint(request):  # which runs in one
        with span("in a thread"):
            time.sleep(0.01)
        return JSONResponse({})

    served = await serve([at(endpoint)])
    client = await served.ask()
    assert (await phases(served))["in_a_thread_ms"] >= 9
    assert timing(client)["in_a_thread"] >= 9


async def test_spans_of_what_fails_and_of_what_is_still_open(serve):
    opened = span("open")

    async def endpoint(request):
        opened.__enter__()
        with pytest.raises(LookupError), span("failed"):
            raise LookupError
        with span("search"):  # the sidecar's own name
            pass
        return JSONResponse({})

    served = await serve([at(endpoint)])
    client = await served.ask()
    found = await phases(served)
    assert {*found} == {"open_ms", "failed_ms", "app_search_ms"}
    assert {"failed", "app_search"} < {*timing(client)} and "open" not in timing(client)


async def test_spans_belong_to_their_request(serve):
    gates = {b"1": asyncio.Event(), b"2": asyncio.Event()}

    async def endpoint(request):
        body = await request.body()
        with span(f"of-{body.decode()}"):
            await gates[body].wait()
        return JSONResponse({})

    served = await serve([at(endpoint)])
    first, second = await served.post(body=b"1"), await served.post(body=b"2")
    await served.active(2)
    for gate in gates.values():
        gate.set()
    assert "of-1" in timing(await first.answer()) and "of-2" in timing(await second.answer())
    both = [{*await phases(served, number)} for number in (0, 1)]
    assert sorted(both, key=str) == [{"of-1_ms"}, {"of-2_ms"}]


async def test_a_span_of_a_run_that_raises(serve):
    async def endpoint(request):
        with span("doomed"):
            raise LookupError

    served = await serve([at(endpoint)])
    assert (await served.ask()).status == 500
    assert {*await phases(served)} == {"doomed_ms"}


async def test_progress_from_a_thread_with_a_loop_of_its_own(serve):
    async def endpoint(request):
        await asyncio.to_thread(lambda: asyncio.run(progress("from afar")))

        async def pieces():
            yield "a"

        return SidecarResponse(pieces())

    served = await serve([at(endpoint)])
    answer = await served.ask(headers={"accept": "text/event-stream"})
    assert answer.body.startswith(b'event: status\ndata: {"message":"from afar"}\n')
    assert answer.body.count(b"event: ") == 3
