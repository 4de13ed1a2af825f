"""sidecar.stores.jobs: what is put in comes out, once where it must be once, and what is wiped is gone."""

import random
import sqlite3
import stat
import threading
import traceback

import pytest

from sidecar.core.types import End, Fault, Outcome
from sidecar.stores import jobs
from sidecar.stores.jobs import JobStore, StoreError
from tests.stores.rig import (
    DATABASE,
    EVERY,
    FAULT,
    copied,
    encodings,
    files_with,
    finished,
    matches,
    order,
    record,
    result,
)

KEY, PROMPT = b"sk-planted-credential-0123456789", b"planted prompt, nobody else's business"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "jobs"


@pytest.fixture
def store(folder):
    opened = JobStore.open(folder)
    yield opened
    opened.close()


def reopened(store, folder):
    store.close()
    return JobStore.open(folder)


def by_hand(folder, statement, *values):
    """Change the database behind the store's back."""
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        connection.execute(statement, values)
    connection.close()


# What goes in comes out.

RECORDS = {
    "plain": record("j"),
    "every label": record("j", labels={"a": "", "b": "ünïcode\0\n\"'", "c": True, "d": False, "e": None}),
    "every detail": record("j", details={"a": 0, "b": -1.5, "c": "x", "d": None, "e": 1.0, "f": 2**62}),
    "ended": record(
        "j", status="failed", started=0.1, ended=2e9, error=Fault("internal", "ü; DROP TABLE jobs")
    ),
    "webhook": record("j", webhook="https://h.test/?a=ü", webhook_state="pending", webhook_attempts=3),
    "odd id": record("'\"; --%_\\ "),
}


@pytest.mark.parametrize("kept", RECORDS.values(), ids=RECORDS)
def test_a_record_comes_back(store, folder, kept):
    store.add(kept, order())
    assert store.get(kept.id) == kept
    store = reopened(store, folder)
    assert store.get(kept.id) == kept
    assert [type(value) for value in store.get(kept.id).details.values()] == [
        type(value) for value in kept.details.values()
    ]
    assert store.get("another") is None
    store.close()


ORDERS = {
    "plain": order(),
    "no body": order(b""),
    "every byte": order(EVERY, (EVERY, EVERY), (b"", b""), (b"A", EVERY[::-1]), target=EVERY, http10=True),
    "repeated headers": order(b"x", (b"a", b"1"), (b"A", b"2"), (b"a", b"1"), method="PATCH"),
    "large": order(random.Random(1).randbytes(8 << 20)),
}


@pytest.mark.parametrize("sent", ORDERS.values(), ids=ORDERS)
def test_an_order_comes_back(store, folder, sent):
    store.add(record("j"), sent)
    store = reopened(store, folder)
    assert store.begin("j", 1.0) == sent
    store.close()


RESULTS = {
    "plain": result(),
    "nothing": result(b"", events=()),
    "every byte": result(EVERY, (EVERY, EVERY), (b"a", b"1"), (b"A", b"2"), events=(1, 256)),
    "large": result(random.Random(2).randbytes(8 << 20), events=range(0, 8 << 20, 100)),
    "far offsets": result(events=(0, 2**32, 2**64 - 1)),
    "faulty": result(end=End(Outcome.TRUNCATED, Fault("upstream_closed", "after 3 bytes"))),
}


@pytest.mark.parametrize("came", RESULTS.values(), ids=RESULTS)
def test_a_result_comes_back(store, folder, came):
    store.add(record("j"), order())
    store.begin("j", 1001.0)
    assert store.result("j") is None
    store.finish("j", "complete", 1002.25, {"events": 7, "rate": 0.5, "who": None}, came.end.fault, came)
    store = reopened(store, folder)
    assert store.result("j") == came
    assert store.get("j") == record(
        "j",
        status="complete",
        started=1001.0,
        ended=1002.25,
        details={"events": 7, "rate": 0.5, "who": None},
        error=came.end.fault,
    )
    assert store.result("another") is None
    store.close()


# From state to state.


def test_the_queue_is_in_order_of_submission(store, folder):
    names = [f"job-{number}" for number in range(50)]
    random.Random(3).shuffle(names)
    for name in names:
        store.add(record(name), order())
    assert store.queued() == names
    store.begin(names[0], 1.0)
    store.cancel(names[20], 1.0)
    store = reopened(store, folder)
    assert store.queued() == names[1:20] + names[21:]
    store.close()


def test_a_job_begins_once(store):
    store.add(record("j"), order(b"1"))
    store.add(record("k"), order(b"2"))
    assert store.begin("j", 5.5) == order(b"1")
    assert store.get("j") == record("j", status="running", started=5.5)
    assert store.begin("j", 6.5) is None
    assert store.get("j").started == 5.5
    assert store.begin("unknown", 1.0) is None
    assert store.queued() == ["k"]


def test_a_job_begins_once_for_two_connections(store, folder):
    # Without its lock, which would not let it in.
    (folder / "jobs.lock").unlink()
    other = JobStore.open(folder)
    names = [f"job-{number}" for number in range(40)]
    for name in names:
        store.add(record(name), order(name.encode()))
    got, start = [], threading.Barrier(2)

    def take(each):
        start.wait()
        got.extend(sent.body.decode() for name in names if (sent := each.begin(name, 1.0)) is not None)

    threads = [threading.Thread(target=take, args=(each,)) for each in (store, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert sorted(got) == sorted(names)
    assert store.queued() == []


def test_only_a_queued_job_is_cancelled(store):
    finished(store, "ended")
    for name in ("running", "queued"):
        store.add(record(name), order())
    store.begin("running", 2.0)
    before = store.get("ended"), store.get("running")
    assert [store.cancel(name, 9.0) for name in ("ended", "running", "unknown")] == [False] * 3
    assert (store.get("ended"), store.get("running")) == before
    assert store.cancel("queued", 9.0)
    assert not store.cancel("queued", 10.0)
    assert store.get("queued") == record("queued", status="cancelled", ended=9.0)
    assert store.begin("queued", 11.0) is None


def test_the_first_end_counts(store):
    finished(store, "j", b"first")
    before = store.get("j")
    store.finish("j", "failed", 9.0, {}, FAULT, result(b"second"))
    store.finish("unknown", "failed", 9.0, {}, FAULT, result(b"second"))
    assert store.get("j") == before
    assert store.result("j").body == b"first"
    assert store.get("unknown") is None


def test_a_job_may_end_without_having_begun(store, folder):
    store.add(record("j"), order(PROMPT))
    store.finish("j", "failed", 9.0, {}, FAULT, None)
    assert store.get("j") == record("j", status="failed", ended=9.0, error=FAULT)
    assert store.begin("j", 10.0) is None
    assert files_with(folder, PROMPT) == []


def test_what_was_running_is_interrupted(store):
    finished(store, "ended")
    for name in ("a", "b", "queued"):
        store.add(record(name), order())
    for name in ("b", "a"):
        store.begin(name, 2.0)
    ended = store.get("ended")
    assert store.interrupt(9.0, FAULT) == ["a", "b"]
    assert store.interrupt(9.5, FAULT) == []
    for name in ("a", "b"):
        assert store.get(name) == record(name, status="failed", started=2.0, ended=9.0, error=FAULT)
    assert store.get("ended") == ended
    assert store.queued() == ["queued"]


def test_webhooks_are_those_of_ended_jobs(store):
    wanted = {"webhook": "https://h.test/", "webhook_state": "pending"}
    for name in ("complete", "cancelled", "interrupted", "queued"):
        store.add(record(name, **wanted), order())
    store.add(record("quiet"), order())
    for name in ("complete", "quiet", "interrupted"):
        store.begin(name, 2.0)
    assert store.webhooks() == []
    for name in ("quiet", "complete"):
        store.finish(name, "complete", 3.0, {}, None, result())
    store.cancel("cancelled", 3.0)
    store.interrupt(4.0, FAULT)
    assert [told.id for told in store.webhooks()] == ["complete", "cancelled", "interrupted"]
    store.webhook_result("complete", "delivered", 1)
    store.webhook_result("cancelled", "pending", 2)
    store.webhook_result("interrupted", "failed", 7)
    assert [(told.id, told.webhook_attempts) for told in store.webhooks()] == [("cancelled", 2)]
    assert (store.get("complete").webhook_state, store.get("complete").webhook_attempts) == ("delivered", 1)
    assert (store.get("interrupted").webhook_state, store.get("interrupted").webhook_attempts) == (
        "failed",
        7,
    )


# Prompt and credential.

HEADER = (b"Authorization", b"Bearer " + KEY)


@pytest.mark.parametrize("size", [1, 200, 10_000], ids="{}x".format)
@pytest.mark.parametrize("away", ["begin", "cancel", "finish"])
def test_prompt_and_credential_leave_the_disk(store, folder, away, size):
    sent = order(PROMPT * size, HEADER, target=b"/v1/x?key=" + KEY)
    store.add(record("other"), order(b"stays"))
    store.add(record("j"), sent)
    assert files_with(folder, PROMPT)
    assert files_with(folder, KEY)
    if away == "begin":
        assert store.begin("j", 2.0) == sent
    elif away == "cancel":
        assert store.cancel("j", 2.0)
    else:
        store.finish("j", "failed", 2.0, {}, FAULT, None)
    assert files_with(folder, PROMPT) == []
    assert files_with(folder, KEY) == []
    assert store.begin("other", 2.0) == order(b"stays")


def test_no_copy_is_left_where_rows_were_moved(store, folder):
    dice = random.Random(1)
    waiting = []
    for number in range(200):
        prompt = f"<planted-{number:06}>"
        store.add(record(f"job-{number}"), order(prompt.encode() * dice.choice([1, 3, 20, 50, 200])))
        waiting.append(number)
        if dice.random() < 0.7:
            taken = waiting.pop(dice.randrange(len(waiting)))
            assert store.begin(f"job-{taken}", 2.0) is not None
            store.finish(f"job-{taken}", "complete", 3.0, {}, None, result(b"r" * dice.choice([10, 5000])))
        if number % 10 == 9:
            store.expire(4.0 if number % 50 == 49 else 0.0)
            assert matches(folder, "<planted-[0-9]{6}>") == {f"<planted-{number:06}>" for number in waiting}


def test_a_prompt_shares_no_page_with_another(store, folder):
    # SQLite leaves copies of rows that share pages, but so seldom that the test above may not meet one.
    for number in range(50):
        store.add(record(f"job-{number}"), order(f"<planted-{number:06}>".encode(), (b"a", PROMPT)))
    store.close()
    content = (folder / DATABASE).read_bytes()
    pages = [content[start : start + 4096] for start in range(0, len(content), 4096)]
    for secret in (b"<planted-", encodings(PROMPT)[1]):
        found = [page for page in pages if secret in page]
        assert len(found) == 50
        # A page with rows begins with its kind; one for the rest of a row, with the number of the next.
        assert {page[0] for page in found} == {0}
        assert {page.count(secret) for page in found} == {1}


@pytest.fixture
def onlooker(folder, store):
    """Somebody who is reading the database, and keeps the store from wiping anything."""
    store._database.rows("PRAGMA busy_timeout=0")
    connection = sqlite3.connect(folder / DATABASE, isolation_level=None)
    yield connection
    connection.close()


def test_what_could_not_be_wiped_is_wiped_later(store, folder, onlooker):
    store.add(record("j"), order(PROMPT))
    onlooker.execute("BEGIN")
    onlooker.execute("SELECT count(*) FROM jobs").fetchall()
    assert store.begin("j", 2.0) == order(PROMPT)
    assert files_with(folder, PROMPT)
    onlooker.execute("ROLLBACK")
    store.webhook_result("j", "none", 0)
    assert files_with(folder, PROMPT) == []


def test_what_a_dead_process_could_not_wipe_is_wiped_by_the_next(store, folder, onlooker, tmp_path):
    store.add(record("j"), order(PROMPT))
    onlooker.execute("BEGIN")
    onlooker.execute("SELECT count(*) FROM jobs").fetchall()
    store.begin("j", 2.0)
    other = copied(folder, tmp_path / "copy")
    assert files_with(other, PROMPT)
    following = JobStore.open(other)
    assert files_with(other, PROMPT) == []
    assert following.get("j").status == "running"
    following.close()


# Room.


def size(folder):
    return sum(file.stat().st_size for file in folder.iterdir())


def test_what_has_expired_gives_its_space_back(store, folder):
    body = random.Random(4).randbytes(200_000)
    for number in range(40):
        finished(store, f"job-{number}", body, ended=1000.0 + number)
    store.add(record("queued"), order())
    store.add(record("running"), order())
    store.begin("running", 1.0)
    whole = size(folder)
    assert whole > 8_000_000
    assert store.expire(1000.0) == 0
    assert store.expire(1020.0) == 20
    assert size(folder) < whole * 0.55
    assert store.get("job-19") is None
    assert store.result("job-19") is None
    assert all(store.result(f"job-{number}").body == body for number in range(20, 40))
    assert store.expire(1e12) == 20
    assert size(folder) < 200_000
    assert store.queued() == ["queued"]
    assert store.get("running").status == "running"


def test_the_room_of_orders_is_given_back_too(store, folder):
    for number in range(8):
        store.add(record(f"job-{number}"), order(bytes(1_000_000)))
    for number in range(8):
        store.begin(f"job-{number}", 1.0)
    store.expire(0.0)
    assert size(folder) < 200_000


def test_much_is_deleted_a_bit_at_a_time(store, monkeypatch):
    for number in range(10):
        finished(store, f"job-{number}", bytes(100_000), ended=1010.0 - number)
    monkeypatch.setattr(jobs, "_STEP", 150_000)
    monkeypatch.setattr(jobs, "_MOST", 350_000)
    assert [store.expire(2000.0) for _ in range(4)] == [4, 4, 2, 0]


def test_those_that_ended_first_go_first(store, monkeypatch):
    for number in range(6):
        finished(store, f"job-{number}", bytes(100_000), ended=1010.0 - number)
    monkeypatch.setattr(jobs, "_STEP", 1)
    monkeypatch.setattr(jobs, "_MOST", 200_000)
    assert store.expire(2000.0) == 2
    assert [name for name in range(6) if store.get(f"job-{name}") is None] == [4, 5]


# What goes wrong.


def told_of(call, *arguments) -> str:
    with pytest.raises(StoreError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value), "".join(traceback.format_exception(caught.value))


def test_an_id_is_used_once(store):
    store.add(record("planted"), order(b"first"))
    message, trace = told_of(store.add, record("planted"), order(b"second"))
    assert "planted" not in message + trace.replace('record("planted")', "")
    assert store.begin("planted", 1.0) == order(b"first")


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    told_of(store.get, "j")
    told_of(store.add, record("j"), order())
    told_of(store.queued)
    told_of(store.expire, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE jobs SET labels = x'80'",
        "UPDATE jobs SET labels = 'null'",
        "UPDATE jobs SET labels = 5",
        "UPDATE jobs SET error = '{}'",
        "UPDATE jobs SET created = 'planted'",
        "UPDATE jobs SET webhook = CAST(x'706c616e746564ff' AS TEXT)",
    ],
)
def test_a_record_that_makes_no_sense_is_an_error_without_its_content(store, folder, change):
    store.add(record("j"), order())
    by_hand(folder, change)
    message, trace = told_of(store.get, "j")
    assert "planted" not in message + trace
    assert store.queued() == ["j"]
    assert store.cancel("j", 1.0)


@pytest.mark.parametrize("change", ["DELETE FROM orders", "UPDATE orders SET head = x'ff'"])
def test_an_order_that_makes_no_sense_is_not_tried_again(store, folder, change):
    store.add(record("j"), order())
    by_hand(folder, change)
    told_of(store.begin, "j", 1.0)
    assert store.get("j").status == "running"
    assert store.begin("j", 1.0) is None
    store.finish("j", "failed", 2.0, {}, FAULT, None)
    assert store.get("j").error == FAULT


@pytest.mark.parametrize("change", ["head = '{}'", "outcome = x'00'", "events = x'0102'"])
def test_a_result_that_makes_no_sense_is_an_error(store, folder, change):
    finished(store, "j")
    by_hand(folder, f"UPDATE results SET {change}")
    told_of(store.result, "j")
    assert store.get("j").status == "complete"


def test_a_failed_change_is_undone(store, folder):
    store.add(record("j"), order())
    store.begin("j", 1.0)
    with pytest.raises(AttributeError):
        store.finish("j", "complete", 2.0, {}, None, "no result")
    assert store.get("j").status == "running"
    store.finish("j", "complete", 2.0, {}, None, result())
    assert store.get("j").status == "complete"


# Who may read it.


def test_nobody_else_may_read_it(folder, tmp_path):
    with_parents = tmp_path / "a" / "b"
    store = JobStore.open(with_parents)
    store.add(record("j"), order())
    found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in with_parents.iterdir()}
    assert found == dict.fromkeys((DATABASE, f"{DATABASE}-wal", f"{DATABASE}-shm", "jobs.lock"), 0o600)
    assert stat.S_IMODE(with_parents.stat().st_mode) == 0o700
    store.close()


def test_files_that_others_may_read_are_closed_to_them(store, folder):
    store.add(record("j"), order())
    store.close()
    (folder / DATABASE).chmod(0o644)
    store = JobStore.open(folder)
    store.add(record("k"), order())
    assert {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()} == {0o600}
    assert store.queued() == ["j", "k"]
    store.close()
