"""An OTLP receiver on loopback: parses what it is sent with the published protocol, and lets tests wait for it."""

import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import Metric
from opentelemetry.proto.trace.v1.trace_pb2 import Span

PATIENCE = 30


class Collector:
    """Answers with `status`, as the path says; a number of None: not at all until `release` is called."""

    def __init__(self) -> None:
        self.status: dict[str, int | None] = {}
        self.traces: list[ExportTraceServiceRequest] = []
        self.metrics: list[ExportMetricsServiceRequest] = []
        self.paths: list[str] = []
        self.headers: list[dict[str, str]] = []
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.traces
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    @property
    def points(self) -> dict[str, Metric]:
        """The metrics that were sent last."""
        (resource,) = self.metrics[-1].resource_metrics
        (scope,) = resource.scope_metrics
        found = {metric.name: metric for metric in scope.metrics}
        assert len(found) == len(scope.metrics)
        return found

    def wait(self, ready: Callable[[], bool]) -> None:
        with self._changed:
            assert self._changed.wait_for(ready, PATIENCE), self.paths

    def release(self) -> None:
        self._released.set()

    def close(self) -> None:
        self.release()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _take(self, path: str, headers: dict[str, str], body: bytes) -> int:
        status = self.status.get(path, 200)
        with self._changed:
            self.paths.append(path)
            self.headers.append(headers)
            if status == 200 and path == "/v1/traces":
                self.traces.append(ExportTraceServiceRequest.FromString(body))
            elif status == 200 and path == "/v1/metrics":
                self.metrics.append(ExportMetricsServiceRequest.FromString(body))
            self._changed.notify_all()
        if status is None:
            self._released.wait()
            return 200
        return status

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status = take(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
                self.close_connection = True
                try:
                    self.send_response(status)
                    self.send_header("Content-Length", "0")
                    self.send_header("Connection", "close")
                    self.end_headers()
                except OSError:
                    pass  # it was kept waiting for too long

            def log_message(self, *args: Any) -> None:
                pass

        return Handler


def attributes(of: Any) -> dict[str, Any]:
    """Attributes as plain values; none comes twice."""
    found = {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in of.attributes}
    assert len(found) == len(of.attributes)
    return found
