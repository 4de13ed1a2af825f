"""Export to an OpenTelemetry collector, where configuration or environment want it."""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import Metric
from structlog.typing import FilteringBoundLogger

from sidecar import __version__
from sidecar.core.values import ConfigError
from sidecar.tables import Otel as Section
from sidecar.telemetry.otel import make, wanted

if TYPE_CHECKING:  # an extra
    from sidecar.telemetry.otel.export import Otel


def exporter(
    given: Section,
    places: Mapping[str, tuple[str, int]],
    collect: Callable[[], Iterable[Metric]],
    log: FilteringBoundLogger,
) -> "Otel | None":
    """What exports; None where nobody wants it. `places`: host and port of upstreams by name. `collect` reads
    the metrics. Raises ConfigError."""

    def failing(reason: str | None) -> None:
        if reason is not None:
            log.warning("otel_failing", reason=reason, effect="spans or metrics are lost")
        else:
            log.info("otel_recovered")

    if not wanted(given.endpoint, os.environ):
        return None
    try:
        return make(given.endpoint, __version__, collect, failing, given.interval, places)
    except ConfigError as error:
        if given.endpoint is not None:
            raise
        # Such variables are often set for everything on a machine.
        log.warning("otel_off", reason=str(error))
        return None
