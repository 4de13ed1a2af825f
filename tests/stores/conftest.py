"""Stores of sealed answers, of every kind."""

import pytest

from sidecar.stores.disk import DiskStore
from sidecar.stores.memory import MemoryStore
from tests.stores.answers_rig import LIMIT, Clock


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "disk"])
def make(request, tmp_path, clock):
    """`make(limit)`: an empty store."""
    made = []

    def make(limit=LIMIT, **named):
        if request.param == "memory":
            made.append(MemoryStore(limit, clock, **named))
        else:
            made.append(DiskStore.open(tmp_path / f"answers{len(made)}", limit, clock, **named))
        return made[-1]

    yield make
    for store in made:
        store.close()


@pytest.fixture
def store(make):
    return make()
