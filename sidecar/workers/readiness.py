"""What works, of all worker processes together."""

from collections.abc import Collection, Mapping, Sequence

from sidecar.serving.siblings import JOBS
from sidecar.serving.snapshot import Check
from sidecar.workers.known import Known

WORKER = "worker-"
"""What the names of workers begin with."""
_STARTS = Known()


def readiness(
    numbers: Sequence[int], known: Mapping[int, Known], served: Collection[int]
) -> dict[str, Check]:
    """By component, and by worker. Requests are served while one worker does, once each has begun to.

    `numbers`: workers that there should be, in their order; `served`: those that have been ready before.
    """
    each = {number: known.get(number, _STARTS).check for number in numbers}
    first_time = [number for number in numbers if not each[number].ready and number not in served]
    why = None
    if first_time:
        why = _of(first_time[0], each[first_time[0]])
    elif not numbers:
        why = "no worker runs"
    elif not any(check.ready for check in each.values()):
        why = _of(numbers[0], each[numbers[0]])
    told = {number: facts.checks for number, one in sorted(known.items()) if (facts := one.facts) is not None}
    checks = {"proxy": Check(ready=why is None, why=why)}
    for name in dict.fromkeys([name for one in told.values() for name in one if name != "proxy"]):
        checks[name] = _component(name, told)
    return checks | {f"{WORKER}{number}": check for number, check in each.items()}


def _component(name: str, told: Mapping[int, Mapping[str, Check]]) -> Check:
    """Of jobs, what the worker says that keeps them; of the rest, whether it works in all."""
    if name == "jobs":
        starts = Check(ready=False, why="the worker that keeps them is being started")
        return told.get(JOBS, {}).get(name, starts)
    checks = {number: one[name] for number, one in told.items() if name in one}
    bad = [number for number, check in checks.items() if not check.ready]
    if not bad:
        return Check(ready=True)
    if len(set(checks.values())) == 1:
        return checks[bad[0]]
    return Check(ready=False, why=_of(bad[0], checks[bad[0]]))


def _of(number: int, check: Check) -> str:
    return f"worker {number}: {check.why}"
