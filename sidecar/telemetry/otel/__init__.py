"""Whether something is exported to an OpenTelemetry collector, and where to.

Nothing of OpenTelemetry is imported before that is known to be wanted: it is an extra, and large.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from prometheus_client.core import Metric

from sidecar.core.values import ConfigError, shown, upstream_url

if TYPE_CHECKING:
    from sidecar.telemetry.otel.export import Otel

_BASE = "OTEL_EXPORTER_OTLP_ENDPOINT"
_SIGNALS = ("traces", "metrics")


class _Target(NamedTuple):
    origin: str
    """Where the address was configured."""
    url: str
    path: str
    """What the signal adds to it."""


def wanted(endpoint: str | None, environ: Mapping[str, str]) -> bool:
    """Whether anything is to be exported. `endpoint`: what the configuration says."""
    return bool(_targets(endpoint, environ))


def _targets(endpoint: str | None, environ: Mapping[str, str]) -> dict[str, _Target]:
    """Where to send what. The configuration goes before the environment; a signal without any address is not
    sent to the default one, because nobody asked for that."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return {}
    found: dict[str, _Target] = {}
    for signal in _SIGNALS:
        own = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
        if environ.get(f"OTEL_{signal.upper()}_EXPORTER", "").strip().lower() == "none":
            continue
        if endpoint:
            found[signal] = _Target("otel.endpoint", endpoint, f"/v1/{signal}")
        elif environ.get(own):
            found[signal] = _Target(own, environ[own], "")
        elif environ.get(_BASE):
            found[signal] = _Target(_BASE, environ[_BASE], f"/v1/{signal}")
    return found


def make(
    endpoint: str | None,
    version: str,
    collect: Callable[[], Iterable[Metric]],
    on_failure: Callable[[str | None], None],
    interval: float = 60.0,
    places: Mapping[str, tuple[str, int]] | None = None,
) -> "Otel":
    """What exports, as configuration and environment have it, if they want it. On the event loop. Raises
    ConfigError.

    `collect` reads the metrics; it is called on the event loop, every `interval` seconds. So is `on_failure`:
    with why, when spans or metrics cannot be sent for the first time, and with None when both can be again.
    `places`: host and port of upstreams by name.
    """
    targets = _targets(endpoint, os.environ)
    for signal, target in targets.items():
        _check(signal, target)
    urls = {signal: target.url.removesuffix("/") + target.path for signal, target in targets.items()}
    try:
        from sidecar.telemetry.otel.export import Otel  # noqa: PLC0415 - see above

        return Otel(urls, version, collect, on_failure, interval, places or {})
    except ImportError:
        origin = next(iter(targets.values())).origin
        remedy = "what exports is not installed; install it with pip install 'slipstream-llm[otel]'"
        if origin != "otel.endpoint":
            remedy += ", or set OTEL_SDK_DISABLED=true"
        raise ConfigError(f"{origin}: {remedy}") from None
    except ValueError as error:
        # Sizes and times of the SDK's own, which only the environment sets.
        raise ConfigError(f"OTEL_*: {str(error).rstrip('.')}") from None


def _check(signal: str, target: _Target) -> None:
    upstream_url(target.origin, target.url, "http://127.0.0.1:4318")
    for other in _SIGNALS:
        if target.path and target.url.rstrip("/").endswith(f"/v1/{other}"):
            raise ConfigError(f"{target.origin}: expected the collector's address without /v1/{other}")
    if target.origin == "otel.endpoint":
        return  # said of us, and we speak one protocol
    for name in (f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = os.environ.get(name)
        if protocol:
            if protocol != "http/protobuf":
                raise ConfigError(
                    f"{name}{shown(protocol)}: only http/protobuf is spoken here; set otel.endpoint to the "
                    "collector's address for that, such as http://127.0.0.1:4318"
                )
            return
