"""The JavaScript SDKs give the same through the sidecar as without it, keepalives and all."""

from __future__ import annotations

from typing import Any

import pytest

from .cases import Case, check_keepalives, check_line, compare
from .rig import NODE_CALLS, NODE_CASES, Provider, Sidecar, at_once, run_node

pytestmark = pytest.mark.both_shells


@pytest.fixture(scope="module")
def results(
    node: None, provider: Provider, sidecar: Sidecar, chosen: dict[str, list[Any]]
) -> dict[str, tuple[Any, Any]]:
    cases: dict[str, list[Case]] = {}
    for sdk, case in chosen["test_node"]:
        cases.setdefault(sdk, []).append(case)
    work = [(sdk, url, paced) for sdk in cases for url, paced in ((provider.url, False), (sidecar.url, True))]
    ran = at_once(lambda item: run_node(item[0], item[1], cases[item[0]], paced=item[2]), work)
    direct: dict[str, Any] = {}
    through: dict[str, Any] = {}
    for (_, _, paced), result in zip(work, ran, strict=True):
        (through if paced else direct).update(result)
    return {name: (direct[name], through[name]) for name in direct}


@pytest.mark.parametrize("case", NODE_CASES, ids=lambda case: case[1].id)
def test_same_through_the_sidecar(
    case: tuple[str, Case], results: dict[str, tuple[Any, Any]], sidecar: Sidecar
) -> None:
    _, asked = case
    compare(asked, *results[asked.id])
    if asked.logged:
        check_line(asked, sidecar.request(asked.id))


@pytest.mark.parametrize("sdk", NODE_CALLS)
def test_keepalives_were_among_it(
    sdk: str, results: dict[str, tuple[Any, Any]], sidecar: Sidecar, chosen: dict[str, list[Any]]
) -> None:
    if cases := [case for name, case in chosen["test_node"] if name == sdk]:
        check_keepalives(cases, sidecar.request)
