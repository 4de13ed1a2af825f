"""sidecar.engine.shelf: what clients may come back to stays within its budget and its time, and goes whole."""

from random import Random

import pytest

from sidecar.core.recording import BLOCK, Recording
from sidecar.core.types import End, Outcome
from sidecar.engine.shelf import Shelf
from tests.engine.rig import pass_time, run

FIXED = 4096
LIMIT = 1 << 20
OVER = End(Outcome.COMPLETE)


class Kept:
    """A call, as far as the shelf is concerned."""

    def __init__(self, name, *, held=False):
        self.name = name
        self.recording = Recording(limit=LIMIT)
        self.shelf = None
        self.charged = 0
        self.held = held

    def grow(self, data):
        """As the pump does it: what is no longer kept counts no longer."""
        self.recording.append(data)
        if self.shelf is None:
            return
        if self.recording.retained:
            self.shelf.charge(self, len(data))
        else:
            self.shelf.drop(self.name)


def put(shelf, name, size=0, *, held=False, over=False):
    kept = Kept(name, held=held)
    kept.recording.append(bytes(size))
    shelf.put(name, kept)
    if over:
        end(shelf, kept)
    return kept


def end(shelf, kept):
    kept.recording.finish(OVER)
    shelf.end(kept.name, kept)


def there(shelf, *names):
    return "".join(name for name in names if shelf.get(name) is not None)


def sure(shelf, kept):
    """The shelf's own accounts are right."""
    total = 0
    for one in kept:
        on = shelf.get(one.name) is one
        over = on and one.name in shelf._ended
        assert (one.shelf is shelf) == (on and not over)
        charged = shelf._ended[one.name].charged if over else one.charged
        assert (charged > 0) == (on and not one.held)  # what a job holds has its bounds elsewhere
        total += charged
    assert shelf.used == total


async def closed(shelf):
    shelf.close()
    assert (len(shelf), shelf.used) == (0, 0)


def test_nothing_is_found_that_was_not_put():
    async def main():
        shelf = Shelf(60, 1 << 20)
        kept = put(shelf, "a")
        assert shelf.get("a") is kept
        assert shelf.get("b") is None
        shelf.drop("b")
        shelf.end("b", Kept("b"))
        assert len(shelf) == 1
        await closed(shelf)

    run(main)


def test_each_counts_for_what_it_takes_and_gives_it_back():
    async def main():
        shelf = Shelf(60, 1 << 20)
        first, second = put(shelf, "a", 100), put(shelf, "b")
        assert (first.charged, second.charged, shelf.used) == (FIXED + 100, FIXED, 2 * FIXED + 100)
        second.grow(bytes(50))
        assert shelf.used == 2 * FIXED + 150
        shelf.drop("a")
        assert (shelf.used, first.charged, first.shelf) == (FIXED + 50, 0, None)
        shelf.drop("a")
        assert shelf.used == FIXED + 50
        await closed(shelf)

    run(main)


def test_the_first_that_ended_goes_first_then_the_first_that_began():
    async def main():
        shelf = Shelf(60, 6 * FIXED)
        kept = [put(shelf, name) for name in "abcde"]
        end(shelf, kept[3])
        end(shelf, kept[1])
        more = [put(shelf, "f")]
        assert there(shelf, *"abcdef") == "abcdef"
        for name, left in [("g", "abcefg"), ("h", "acefgh"), ("i", "cefghi"), ("k", "efghik")]:
            more.append(put(shelf, name))
            assert there(shelf, *"abcdefghik") == left
        sure(shelf, [*kept, *more])
        await closed(shelf)

    run(main)


def test_one_that_grows_makes_others_go_and_in_the_end_itself():
    async def main():
        shelf = Shelf(60, 4 * FIXED)
        first, ended, last = put(shelf, "a"), put(shelf, "b", over=True), put(shelf, "c")
        last.grow(bytes(FIXED))
        assert there(shelf, *"abc") == "abc"
        last.grow(b"x")
        assert there(shelf, *"abc") == "ac"
        last.grow(bytes(FIXED))
        assert there(shelf, *"abc") == "c"
        assert not first.recording.retained
        last.grow(bytes(FIXED))
        assert there(shelf, *"abc") == ""
        assert not last.recording.retained
        assert shelf.used == 0
        last.grow(bytes(FIXED))
        assert shelf.used == 0
        assert ended.recording.retained, "somebody may be reading it"
        await closed(shelf)

    run(main)


def test_one_that_is_larger_than_everything_is_not_kept_and_takes_the_ended_with_it():
    async def main():
        shelf = Shelf(60, 3 * FIXED)
        put(shelf, "a", over=True)
        kept = put(shelf, "b", 4 * FIXED)
        assert (len(shelf), kept.recording.retained) == (0, False)
        end(shelf, kept)
        assert len(shelf) == 0
        await closed(shelf)

    run(main)


def test_with_less_room_those_that_ended_first_go_and_those_that_run_stay():
    async def main():
        shelf = Shelf(60, 6 * FIXED)
        kept = [put(shelf, name) for name in "abcd"]
        for one in kept[:3]:
            end(shelf, one)
        shelf.resize(3 * FIXED)
        assert there(shelf, *"abcd") == "bcd"
        kept += [put(shelf, name) for name in "ef"]
        assert there(shelf, *"bcdef") == "def"
        kept.append(put(shelf, "g"))
        assert there(shelf, *"defg") == "defg", "they run: only the budget is theirs"
        end(shelf, kept[3])
        assert there(shelf, *"defg") == "efg"
        end(shelf, kept[4])
        assert there(shelf, *"efg") == "efg"
        sure(shelf, kept)
        shelf.resize(100 * FIXED)
        kept += [put(shelf, name) for name in "hijk"]
        assert there(shelf, *"efghijk") == "fghijk", "the budget is the most"
        shelf.resize(0)
        assert there(shelf, *"fghijk") == "fghijk"
        shelf.evict()
        assert (len(shelf), shelf.used) == (0, 0)
        assert not kept[-1].recording.retained
        sure(shelf, kept)
        await closed(shelf)

    run(main)


def test_what_a_job_holds_is_not_given_up_for_want_of_memory():
    async def main():
        shelf = Shelf(60, 6 * FIXED)
        put(shelf, "a", held=True)
        put(shelf, "b")
        shelf.resize(0)
        shelf.evict()
        assert there(shelf, *"ab") == "a"
        await closed(shelf)

    run(main)


@pytest.mark.parametrize("over", [False, True])
def test_what_a_job_holds_takes_nobody_elses_room(over):
    async def main():
        shelf = Shelf(60, 3 * FIXED)
        held = put(shelf, "a", held=True)
        put(shelf, "b", over=over)
        held.grow(bytes(10 * FIXED))
        assert there(shelf, *"ab") == "ab"
        assert held.recording.retained
        assert shelf.used == FIXED
        put(shelf, "c", 2 * FIXED)
        assert there(shelf, *"abc") == "ac"
        shelf.drop("a")
        assert shelf.used == 3 * FIXED
        await closed(shelf)

    run(main)


def test_each_goes_when_its_time_since_the_end_is_over():
    async def main():
        shelf = Shelf(10, 1 << 20)
        kept = [put(shelf, name) for name in "abc"]
        await pass_time(100)
        assert there(shelf, *"abc") == "abc", "one that runs has no time"
        end(shelf, kept[1])
        await pass_time(4)
        end(shelf, kept[0])
        await pass_time(5.9)
        assert there(shelf, *"abc") == "abc"
        await pass_time(0.2)
        assert there(shelf, *"abc") == "ac"
        await pass_time(3.8)
        assert there(shelf, *"abc") == "ac"
        await pass_time(0.2)
        assert there(shelf, *"abc") == "c"
        # The clock starts anew for the next.
        end(shelf, kept[2])
        await pass_time(9.9)
        assert there(shelf, *"abc") == "c"
        await pass_time(0.2)
        assert (len(shelf), shelf.used) == (0, 0)
        sure(shelf, kept)
        await closed(shelf)

    run(main)


def test_taking_one_away_does_not_change_the_time_of_the_others():
    async def main():
        shelf = Shelf(10, 1 << 20)
        kept = [put(shelf, name, over=True) for name in "ab"]
        await pass_time(5)
        shelf.drop("a")
        late = put(shelf, "c", over=True)
        await pass_time(5.1)
        assert there(shelf, *"abc") == "c"
        await pass_time(5)
        assert len(shelf) == 0
        sure(shelf, [*kept, late])
        await closed(shelf)

    run(main)


def test_ending_twice_does_not_give_more_time():
    async def main():
        shelf = Shelf(10, 1 << 20)
        kept = put(shelf, "a", over=True)
        await pass_time(6)
        shelf.end("a", kept)
        await pass_time(4.1)
        assert len(shelf) == 0
        shelf.end("a", kept)
        assert len(shelf) == 0
        await closed(shelf)

    run(main)


def test_no_time_at_all_is_none_after_the_end():
    async def main():
        shelf = Shelf(0, 1 << 20)
        kept = put(shelf, "a")
        await pass_time(1)
        assert there(shelf, "a") == "a"
        end(shelf, kept)
        await pass_time(0)
        assert len(shelf) == 0
        await closed(shelf)

    run(main)


def test_closing_leaves_no_timer_and_nothing_on_the_shelf():
    async def main():
        shelf = Shelf(10, 1 << 20)
        kept = [put(shelf, "a"), put(shelf, "b", over=True), put(shelf, "c", held=True)]
        await closed(shelf)
        sure(shelf, kept)
        assert [one.recording.retained for one in kept] == [True] * 3

    run(main)  # which checks for timers


def test_what_is_packed_when_it_gets_tight_can_be_had_whole():
    async def main():
        shelf = Shelf(60, 64 * BLOCK)
        kept = [Kept(name) for name in "abcdefgh"]
        bodies = []
        for one in kept:
            shelf.put(one.name, one)
            body = b"".join(b"data: %d %b\n\n" % (number, one.name.encode()) for number in range(20_000))
            for at in range(0, len(body), 5000):
                one.grow(body[at : at + 5000])
            bodies.append(body)
            end(shelf, one)
            sure(shelf, kept)
        assert shelf.used <= 64 * BLOCK < sum(map(len, bodies))
        assert len(shelf) == len(kept), "packed, there is room for all"
        for one, body in zip(kept, bodies, strict=True):
            assert one.recording.whole() == body
        await closed(shelf)

    run(main)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_the_budget_holds_and_what_is_found_is_whole(seed):
    """Any order of beginnings, growth, ends, takings and passing time -> accounts, order and bytes are right."""
    random = Random(seed)

    async def main():
        memory = random.choice([3, 8, 30]) * FIXED
        keep = random.choice([0.5, 5, 50])
        shelf, kept, sent = Shelf(keep, memory), [], {}
        ends = {}

        def sound():
            sure(shelf, kept)
            assert shelf.used <= memory
            on = [one for one in kept if shelf.get(one.name) is one]
            assert len(on) == len(shelf)
            for one in on:
                assert one.recording.whole() == sent[one.name]
            ended = [one.name for one in on if one.name in ends]
            gone = [name for name in ends if name not in ended and name not in taken]
            # Those that ended first have gone first, or none.
            assert (
                not gone or not ended or max(ends[name] for name in gone) < min(ends[name] for name in ended)
            )

        taken, order = set(), 0
        for step in range(150):
            what = random.choice(["put", "grow", "grow", "grow", "end", "drop", "time"])
            one = random.choice(kept) if kept else None
            if what == "put" or one is None:
                made = Kept(str(step), held=random.random() < 0.1)
                sent[made.name] = random.randbytes(random.choice([0, 10, 3000]))
                made.recording.append(sent[made.name])
                kept.append(made)
                shelf.put(made.name, made)
            elif what == "grow" and one.recording.end is None:
                data = bytes([65 + step % 3]) * random.choice([1, 500, 9000, 40_000])
                sent[one.name] += data
                one.grow(data)
            elif what == "end" and one.recording.end is None:
                if one.held:  # a job's result is on disk now
                    taken.add(one.name)
                    shelf.drop(one.name)
                    one.held = False
                if shelf.get(one.name) is one:
                    ends[one.name] = order = order + 1
                end(shelf, one)
            elif what == "drop" and random.random() < 0.3:
                taken.add(one.name)
                shelf.drop(one.name)
            elif what == "time":
                await pass_time(random.choice([0.1, 1, 10]))
            sound()
        await pass_time(keep * 2)
        for name in ends:
            assert shelf.get(name) is None
        sound()
        await closed(shelf)

    run(main)
