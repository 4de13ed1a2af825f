"""Fixtures of the SDK tests."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from .rig import Provider, Sidecar, install_node


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(scope="session")
def shell(request: pytest.FixtureRequest) -> str:
    """`proxy`, or `asgi` where a test is marked `both_shells`."""
    found: str = getattr(request, "param", "proxy")
    return found


@pytest.fixture(scope="session")
def sidecar(provider: Provider, tmp_path_factory: pytest.TempPathFactory, shell: str) -> Iterator[Sidecar]:
    running = Sidecar(provider.url, tmp_path_factory.mktemp("sidecar"), shell=shell)
    yield running
    assert running.stop()


@pytest.fixture(scope="session")
def node() -> None:
    """The JavaScript SDKs, installed. Without Node the tests are skipped, but never in CI."""
    if shutil.which("node") is None and not os.environ.get("CI"):
        pytest.skip("Node is not installed")
    install_node()


@pytest.fixture(scope="session")
def chosen(request: pytest.FixtureRequest) -> dict[str, list[Any]]:
    """The `case` parameters of the tests that are to run, by module: no others need to be computed."""
    cases: dict[str, list[Any]] = {"test_python": [], "test_node": []}
    for item in request.session.items:
        spec = getattr(item, "callspec", None)
        if spec is not None and "case" in spec.params:
            found = cases.setdefault(item.path.stem, [])
            if spec.params["case"] not in found:
                found.append(spec.params["case"])
    return cases
