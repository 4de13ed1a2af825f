"""A real sidecar with a collector: spans below their callers', metrics as they are scraped, in both cases of the
address."""

import asyncio

import httpx
import pytest

from tests.telemetry.collector import Collector, attributes

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
ASK = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "planted prompt"}]}


@pytest.fixture
def collector(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    made = Collector()
    yield made
    made.close()


async def post(sidecar, headers, **more):
    headers = {"Authorization": "Bearer sk-planted", **headers}
    async with httpx.AsyncClient() as client:
        answer = await client.post(
            f"{sidecar.url}/v1/chat/completions?key=planted", json=ASK | more, headers=headers
        )
        assert answer.status_code == 200


async def spans(collector, wanted):
    await asyncio.to_thread(collector.wait, lambda: wanted(collector.spans))
    return collector.spans


@pytest.mark.parametrize("way", ["configuration", "environment"])
async def test_a_request_is_a_span_below_its_callers_and_metrics_arrive(
    provider, start_sidecar, collector, monkeypatch, way
):
    if way == "environment":
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        sidecar = await start_sidecar(provider.url)
    else:
        sidecar = await start_sidecar(provider.url, otel__endpoint=collector.url, otel__interval=0.05)
    await post(sidecar, PARENT, stream=True)
    line = await sidecar.lines.request()
    found = await spans(collector, lambda spans: any(span.parent_span_id.hex() == CALLER for span in spans))
    (whole,) = [span for span in found if span.parent_span_id.hex() == CALLER]
    assert (whole.trace_id.hex(), whole.name) == (TRACE, "chat gpt-5-mini")
    assert attributes(whole)["slipstream.request_id"] == line["request_id"]
    assert "upstream" in {span.name for span in found if span.parent_span_id == whole.span_id}
    if way == "configuration":
        await asyncio.to_thread(
            collector.wait,
            lambda: collector.metrics and "gen_ai.client.operation.duration" in collector.points,
        )
    sent = repr(collector.traces) + repr(collector.metrics)
    assert "planted" not in sent


async def test_variables_that_are_set_for_everything_do_not_stop_it(provider, start_sidecar, monkeypatch):
    """An address that is none is an error where it was given to us, and a warning where it was given to all."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "grpc://collector:4317")
    sidecar = await start_sidecar(provider.url)
    assert [line["event"] for line in sidecar.lines.all] == ["otel_off"]
    await post(sidecar, {})
