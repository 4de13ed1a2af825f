"""The export to a collector: what runs on the event loop, which threads there are, and how it all ends.

The event loop queues what has ended and reads the metrics. Threads do the rest, and a collector that is slow
or away costs nothing but its own data.
"""

import asyncio
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import Decision, Sampler
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.core import Metric

from sidecar.core.latency import trace_id
from sidecar.telemetry.otel.metrics import MetricSender
from sidecar.telemetry.otel.spans import IDS, Ended, Origin, SpanSender, beginning, caller
from sidecar.telemetry.otel.wire import Session, Told

_BATCH = 64
"""Requests; each becomes several spans, and encoding many at once would hold the interpreter for too long."""

# What the SDK says of failures would go to stderr, where our log is. Apps that have set up `logging` get it.
logging.getLogger("opentelemetry").addHandler(logging.NullHandler())


class Otel:
    """Exports what one process does. Made, called and closed on the event loop."""

    def __init__(
        self,
        urls: Mapping[str, str],
        version: str,
        collect: Callable[[], Iterable[Metric]],
        on_failure: Told,
        interval: float,
        places: Mapping[str, tuple[str, int]],
    ) -> None:
        """`urls`: of `traces` and `metrics`, those of them that are to be sent. The rest as for `make`."""
        self._loop = asyncio.get_running_loop()
        self._collect = collect
        self._on_failure = on_failure
        self._interval = interval
        self._failing: set[str] = set()
        self._closed = False
        resource = _resource(version)
        scope = InstrumentationScope("slipstream", version)
        self._spans = None
        if "traces" in urls:
            session = Session()
            exporter = OTLPSpanExporter(urls["traces"], session=session)
            origin = Origin(resource, scope, places)
            self._spans = _Spans(
                SpanSender(exporter, session, origin, self._teller("spans")), _sampler(resource)
            )
        self._metrics = None
        if "metrics" in urls:
            session = Session()
            pusher = OTLPMetricExporter(urls["metrics"], session=session)
            self._metrics = MetricSender(pusher, session, resource, scope, self._teller("metrics"))
            self._timer = self._loop.call_later(interval, self._tick)

    @property
    def dropped(self) -> int:
        """Requests whose spans were lost, so far."""
        return self._spans.sender.dropped if self._spans is not None else 0

    def span(self, line: Mapping[str, Any], begun: float, parent: bytes | None) -> None:
        """A request has ended. `line`: its latency line; `begun`: when it began, in unix seconds; `parent`:
        its `traceparent`, as it came. Never waits."""
        if self._spans is not None:
            self._spans.take(line, begun, parent)

    def close(self, timeout: float = 2.0) -> None:
        """Send what there is, but wait no longer than `timeout` seconds."""
        if self._closed:
            return
        self._closed = True
        until = time.monotonic() + timeout
        threads: list[threading.Thread] = []
        if self._spans is not None:
            threads.append(self._spans.finish())
        if self._metrics is not None:
            self._timer.cancel()
            self._metrics.give(list(self._collect()), last=True)
            threads.append(self._metrics.thread)
        for thread in threads:
            thread.join(max(until - time.monotonic(), 0.0))
        # What still runs waits for the next of its tries, and this wakes it.
        if self._spans is not None:
            self._spans.sender.shutdown()
        if self._metrics is not None:
            self._metrics.shutdown()

    def _tick(self) -> None:
        assert self._metrics is not None
        self._timer = self._loop.call_later(self._interval, self._tick)
        self._metrics.give(list(self._collect()))

    def _teller(self, signal: str) -> Told:
        """Takes news from a thread to the event loop."""

        def tell(failure: str | None) -> None:
            try:
                self._loop.call_soon_threadsafe(self._heard, signal, failure)
            except RuntimeError:
                pass  # the loop is closed, and nobody listens any more

        return tell

    def _heard(self, signal: str, failure: str | None) -> None:
        if failure is not None:
            self._failing.add(signal)
            self._on_failure(f"{signal}: {failure}")
            return
        self._failing.discard(signal)
        if not self._failing:
            self._on_failure(None)


class _Spans:
    """The event loop's side of the spans: which are sent, and their queue."""

    def __init__(self, sender: SpanSender, sampler: Sampler | None) -> None:
        self.sender = sender
        self._sampler = sampler
        self._count = 0
        size = None if os.environ.get("OTEL_BSP_MAX_EXPORT_BATCH_SIZE") else _BATCH
        self._queue = BatchSpanProcessor(sender, max_export_batch_size=size)

    def take(self, line: Mapping[str, Any], begun: float, traceparent: bytes | None) -> None:
        known = trace_id(traceparent)
        if known is not None and traceparent is not None:
            parent = caller(known, traceparent)
            trace = parent.trace_id
            if not parent.trace_flags.sampled:
                return
        else:
            parent, trace = None, IDS.generate_trace_id()
            if self._sampler is not None:
                decision = self._sampler.should_sample(None, trace, "request").decision
                if decision is not Decision.RECORD_AND_SAMPLE:
                    return
        self._queue.on_end(Ended(self._count, line, begun, beginning(trace), parent))
        self._count += 1

    def finish(self) -> threading.Thread:
        """Send what is queued; the thread ends when that is done. The queue itself would wait for half a
        minute."""
        thread = threading.Thread(target=self._queue.shutdown, name="slipstream-otel-end", daemon=True)
        thread.start()
        return thread


def _resource(version: str) -> Resource:
    """Who we are; what the environment says goes before. Counts of two processes must not be taken for those
    of one, so each has an id."""
    who = {"service.name": "slipstream", "service.version": version, "service.instance.id": str(uuid.uuid4())}
    return Resource.create(who).merge(OTELResourceDetector().detect())


def _sampler(resource: Resource) -> Sampler | None:
    """Who decides on traces that begin here, if the environment names one; without it all are sent."""
    if not os.environ.get("OTEL_TRACES_SAMPLER"):
        return None
    return TracerProvider(resource=resource, shutdown_on_exit=False).sampler
