"""The Python SDKs give the same through the sidecar as without it, keepalives and all."""

from __future__ import annotations

from typing import Any

import pytest

from .calls import CALLS, CASES, run
from .cases import Case, check_keepalives, check_line, compare
from .rig import Provider, Sidecar, at_once

# google-genai's own, when aiohttp is there.
pytestmark = [
    pytest.mark.both_shells,
    pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def results(provider: Provider, sidecar: Sidecar, chosen: dict[str, list[Any]]) -> dict[str, tuple[Any, Any]]:
    def both(case: Case) -> tuple[Any, Any]:
        return run(case, provider.url, paced=False), run(case, sidecar.url, paced=True)

    cases = chosen["test_python"]
    return dict(zip([case.id for case in cases], at_once(both, cases), strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_through_the_sidecar(case: Case, results: dict[str, tuple[Any, Any]], sidecar: Sidecar) -> None:
    compare(case, *results[case.id])
    if case.logged:
        check_line(case, sidecar.request(case.id))


@pytest.mark.parametrize("call", [name for name, (_, variants) in CALLS.items() if "stream" in variants])
def test_keepalives_were_among_it(
    call: str, results: dict[str, tuple[Any, Any]], sidecar: Sidecar, chosen: dict[str, list[Any]]
) -> None:
    if cases := [case for case in chosen["test_python"] if case.call == call]:
        check_keepalives(cases, sidecar.request)
