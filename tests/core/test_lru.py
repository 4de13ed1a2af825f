"""sidecar.core.lru: bounded, and what was used longest ago goes first."""

from hypothesis import given as over
from hypothesis import strategies as st

from sidecar.core.lru import Lru

KEYS = st.sampled_from([bytes([number]) for number in range(6)])
SIZES = st.integers(0, 12)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), KEYS, SIZES),
        st.tuples(st.sampled_from(["get", "peek", "pop"]), KEYS),
        st.tuples(st.just("clear")),
    ),
    max_size=60,
)


class Model:
    """The same with a list: what was used last is at its end."""

    def __init__(self, limit):
        self.limit = limit
        self.items = []

    def find(self, key):
        return next((item for item in self.items if item[0] == key), None)

    def put(self, key, value, size):
        self.pop(key)
        if size > self.limit:
            return [(key, value)]
        self.items.append((key, value, size))
        gone = []
        while sum(item[2] for item in self.items) > self.limit:
            gone.append(self.items.pop(0)[:2])
        return gone

    def get(self, key):
        if item := self.find(key):
            self.items.remove(item)
            self.items.append(item)
        return self.peek(key)

    def peek(self, key):
        item = self.find(key)
        return item and item[1]

    def pop(self, key):
        if item := self.find(key):
            self.items.remove(item)
        return item and item[1]

    def clear(self):
        self.items = []


@over(st.integers(0, 20), STEPS)
def test_it_does_what_a_list_would_do(limit, steps):
    lru, model = Lru(limit), Model(limit)
    for number, (what, *arguments) in enumerate(steps):
        given = (arguments[0], number, arguments[1]) if what == "put" else arguments
        assert getattr(lru, what)(*given) == getattr(model, what)(*given)
        assert list(lru.items()) == [item[:2] for item in model.items]
        assert len(lru) == len(model.items)
        assert lru.used == sum(item[2] for item in model.items) <= limit


def test_a_value_may_be_as_large_as_the_limit_and_not_larger():
    lru = Lru(10)
    assert lru.put(b"a", "small", 1) == []
    assert lru.put(b"b", "whole", 10) == [(b"a", "small")]
    assert lru.put(b"c", "more", 11) == [(b"c", "more")]
    assert lru.get(b"b") == "whole"
    assert lru.put(b"b", "more", 11) == [(b"b", "more")]
    assert len(lru) == lru.used == 0
