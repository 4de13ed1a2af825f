"""What the system says of a process, and of several that serve one port.

Of several: CPU time and memory are sums, descriptors those of the process that is nearest to its limit (a sum
would hide one that runs out), and the start is that of whoever is asked.
"""

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric

from sidecar.telemetry.counted import exact

Process = dict[str, float]
"""By name of the metric, without `_total`; empty where the system tells nothing."""

CPU = "process_cpu_seconds"
_SUMS = frozenset({CPU, "process_resident_memory_bytes", "process_virtual_memory_bytes"})
_OPEN, _MOST = "process_open_fds", "process_max_fds"


class OwnProcess:
    """The one that we are in."""

    def __init__(self) -> None:
        self._collector = ProcessCollector(registry=CollectorRegistry(auto_describe=False))

    def read(self) -> Process:
        """Its figures. It reads a few files of /proc: for a thread."""
        return {family.name: family.samples[0].value for family in self._families()}

    def families(self, others: Sequence[Process] = ()) -> list[Metric]:
        """As a scrape has them, with those of other processes. For a thread, too."""
        families = self._families()
        own = {family.name: family.samples[0].value for family in families}
        told = _together(own, others)
        for family in families:
            family.samples = [sample._replace(value=told[family.name]) for sample in family.samples]
        return families

    def _families(self) -> list[Metric]:
        return [family for family in self._collector.collect() if family.samples]


def _together(own: Process, others: Iterable[Process]) -> Process:
    found = {name: exact(value) for name, value in own.items()}
    for other in others:
        for name in _SUMS & found.keys():
            found[name] += exact(other.get(name, 0.0))
        if _share(other) > _share(found):
            found[_OPEN], found[_MOST] = other[_OPEN], other[_MOST]
    return found


def _share(process: Process) -> float:
    """Of the descriptors that it may have."""
    return process.get(_OPEN, 0.0) / max(process.get(_MOST, 0.0), 1.0)
