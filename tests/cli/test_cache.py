"""sidecar.cli.cache: what stats and list show, what purge takes, and what every command says and exits with."""

import json
import os
import pty
import subprocess
import sys
import time

import pytest

from sidecar.core.entry import point
from sidecar.stores import counts
from sidecar.stores.base import Near
from tests.cli.cache_rig import ALICE, BOB, CHAT, ROOM, alias_of, key_of, keys_in, put, some, store_in
from tests.cli.conftest import finished

COMMANDS = (["stats"], ["list"], ["export"], ["purge", "--all"])


@pytest.fixture
def folder(clean):
    made = clean / "data"
    some(made)
    return made


@pytest.fixture
def cache(cli, folder):
    """`cache("list", "--json")`: the command on the folder with five answers."""
    return lambda *arguments: cli("cache", *arguments, "--data-dir", str(folder))


def listed(result):
    return [json.loads(line) for line in result.out.splitlines()]


def keys(*names):
    return [key_of(name).hex() for name in names]


# Where it looks, and what it says there.


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_without_a_store_is_one_line_and_exit_0(cli, clean, command):
    code, out, err = cli("cache", *command, "--data-dir", str(clean / "none"))
    assert (code, out, err) == (0, "", f"nothing is stored yet in {clean / 'none'}\n")
    assert not (clean / "none").exists()


def test_stats_of_nothing_are_still_json(cli, clean):
    code, out, _ = cli("cache", "stats", "--json", "--data-dir", str(clean / "none"))
    found = json.loads(out)
    assert (code, found["answers"], found["counts"], found["models"]) == (0, 0, {}, [])


@pytest.mark.parametrize("command", [*COMMANDS, ["import", "-"]])
def test_a_folder_that_cannot_be_used_is_one_line_and_exit_2(cli, clean, command):
    (clean / "file").write_text("a file")
    code, out, err = cli("cache", *command, "--data-dir", str(clean / "file"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(clean / "file") in err


@pytest.mark.parametrize("command", COMMANDS[:3])
def test_a_store_that_cannot_be_opened_is_one_line_and_exit_2(cli, clean, command):
    (clean / "data").mkdir()
    (clean / "data" / "answers").mkdir()
    (clean / "data" / "answers.lock").mkdir()
    code, out, err = cli("cache", *command, "--data-dir", str(clean / "data"))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(clean / "data") in err


@pytest.mark.parametrize("way", ["flag", "file", "variable", "systemd"])
def test_the_folder_is_found_as_serve_finds_it(cli, folder, clean, way):
    given, environment = [], {}
    if way == "flag":
        given = ["--data-dir", str(folder)]
    elif way == "file":
        (clean / "slipstream.toml").write_text(f'[server]\ndata_dir = "{folder}"\n')
        given = ["--config", str(clean / "slipstream.toml")]
    elif way == "variable":
        environment = {"SLIPSTREAM_SERVER__DATA_DIR": str(folder)}
    else:
        environment = {"STATE_DIRECTORY": str(folder)}
    assert len(listed(cli("cache", "list", "--json", *given, **environment))) == 5


def test_a_bad_configuration_is_one_line_and_exit_2(cli, folder):
    code, out, err = cli("cache", "list", "--data-dir", str(folder), SLIPSTREAM_CACHE__SIZE="lots")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cache.size" in err


def test_looking_without_the_sidecars_configuration_makes_no_room(cli, clean):
    """Opening a store with a smaller limit would drive out what is over it."""
    folder = clean / "data"
    with store_in(folder, limit=64 << 20) as store:
        for number in range(40):
            put(store, f"answer {number}", alias=False)
    for command in (["stats"], ["list"], ["export"], ["purge", "--expired"]):
        done = cli("cache", *command, "--data-dir", str(folder), SLIPSTREAM_CACHE__SIZE="128KiB")
        assert done.code == 0
    found = json.loads(cli("cache", "stats", "--json", "--data-dir", str(folder)).out)
    assert (found["answers"], found["limit"]) == (40, 64 << 20)
    larger = cli("cache", "stats", "--json", "--data-dir", str(folder), SLIPSTREAM_CACHE__SIZE="2GiB")
    assert json.loads(larger.out)["limit"] == 2 << 30


# stats


def test_stats_count_answers_and_not_what_points_at_them(cache, folder):
    found = json.loads(cache("stats", "--json").out)
    assert (found["answers"], found["aliases"], found["expired"], found["unreadable"]) == (5, 4, 0, 0)
    assert found["folder"] == str(folder)
    assert 0 < found["bytes"] < found["limit"] == ROOM
    assert found["oldest"] < found["newest"] < time.time()
    models = {(of["upstream"], of["model"]): of["answers"] for of in found["models"]}
    assert models == {("openai", "m"): 3, ("local", "n"): 2}
    assert all(of["bytes"] > 1000 for of in found["models"])
    assert (found["since"], found["counts"]) == (None, {})


def test_stats_for_people(cache, folder):
    code, out, err = cache("stats")
    assert (code, err) == (0, "")
    assert out.startswith(f"5 answers in {folder}\n")
    assert "of 1.0 GiB on disk" in out
    assert ["openai", "m", "3"] in [line.split()[:3] for line in out.splitlines()]
    assert "since" not in out


def test_stats_tell_what_was_counted_in_words(cache, folder):
    added = {
        "hit_memory": 1200,
        "hit_stale": 1,
        "lookup_late": 2,
        "stored": 7,
        "store_failed": 1,
        "not_stored_finish": 4,
        "from_the_future": 3,
    }
    counts.add(folder / "counts.json", added)
    told = [" ".join(line.split()) for line in cache("stats").out.splitlines()]
    assert "1,201 answered from the cache" in told
    assert "1,200 out of memory" in told
    assert "2 looked up in vain" in told
    assert "7 stored" in told
    assert "5 not stored" in told
    assert any(line.startswith("4 the model did not end of its own accord") for line in told)
    assert "3 from_the_future" in told
    assert not any("temperature" in line for line in told)
    assert json.loads(cache("stats", "--json").out)["counts"] == added


def test_stats_tell_how_many_can_be_found_in_other_words(cache, folder):
    assert json.loads(cache("stats", "--json").out)["vectors"] == 0
    assert "in other words" not in cache("stats").out
    with store_in(folder) as store:
        for name in ("one", "two"):
            store.note(key_of(name), Near(bytes(32), b"vector", b"traits"))
    assert json.loads(cache("stats", "--json").out)["vectors"] == 2
    assert "  found by the same question in other words: 2 answers\n" in cache("stats").out


def test_stats_tell_what_came_of_comparing_questions(cache, folder):
    added = {
        "hit_memory": 2,
        "hit_semantic": 40,
        "semantic_late": 5,
        "semantic_never_heard_of": 6,
        "guard_numbers": 30,
        "guard_word_order": 7,
        "verify_right": 39,
        "verify_wrong": 1,
        "shadow_right": 1,
        "shadow_wrong": 2,
        "note_failed": 4,
    }
    counts.add(folder / "counts.json", added)
    told = [" ".join(line.split()) for line in cache("stats").out.splitlines()]
    assert "42 answered from the cache" in told
    assert "40 to the same question in other words" in told
    at = told.index("questions in other words")
    assert told[at + 1 : at + 10] == [
        "39 checked: the upstream says the same",
        "30 refused by the guard: numbers",
        "7 refused by the guard: word order",
        "6 never heard of",
        "5 looking took longer than semantic.deadline",
        "2 not served: the upstream says something else",
        "1 checked: the upstream says something else",
        "1 not served: the upstream says the same",
        "2.5% false hits among those checked (1 of 40)",
    ]
    assert told[at + 10 :] == ["66.7% false hits among those that would have been served (2 of 3)"]
    assert "otherwise" not in " ".join(told)
    assert json.loads(cache("stats", "--json").out)["counts"] == added


def test_stats_say_nothing_of_what_was_not_compared(cache, folder):
    counts.add(folder / "counts.json", {"hit_memory": 2})
    out = cache("stats").out
    assert "in other words" not in out
    assert "%" not in out.split("since")[1]


def test_stats_tell_of_what_is_over_and_of_what_cannot_be_read(cache, folder):
    with store_in(folder, ago=7200) as store:
        put(store, "over", seconds=60.0, alias=False)
        store.put(key_of("damaged"), b"SLA1" + b"?" * 100, tag=ALICE, seconds=9999.0)
    found = json.loads(cache("stats", "--json").out)
    assert (found["answers"], found["expired"], found["unreadable"]) == (5, 1, 1)
    out = cache("stats").out
    assert "time is over for 1 entry more" in out
    assert "damaged: 1 entry" in out


def test_more_models_than_fit_are_counted(cache, folder):
    with store_in(folder) as store:
        for number in range(20):
            put(store, f"model {number}", model=f"model-{number}", alias=False)
    out = cache("stats").out
    assert "and 12 more; --json has all of them" in out
    assert len(json.loads(cache("stats", "--json").out)["models"]) == 22


# list


def test_list_has_the_newest_first_and_aliases_nowhere(cache):
    found = listed(cache("list", "--json"))
    assert [line["key"] for line in found] == keys("five", "four", "three", "two", "one")
    assert set(found[0]) >= {
        "tenant",
        "upstream",
        "model",
        "path",
        "stream",
        "stored",
        "ttl",
        "expires",
        "size",
    }


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--tenant", BOB], ["five", "two"]),
        (["--tenant", BOB.upper()], ["five", "two"]),
        (["--upstream", "local"], ["four", "three"]),
        (["--model", "m"], ["five", "two", "one"]),
        (["--path", "/local"], ["four"]),
        (["--path", "/v1", "--upstream", "local"], ["three"]),
        (["--model", "m", "--tenant", ALICE], ["one"]),
        (["--model", "none"], []),
    ],
)
def test_list_shows_what_all_filters_take(cache, given, names):
    assert [line["key"] for line in listed(cache("list", "--json", *given))] == keys(*names)
    piped = cache("list", *given).out.splitlines()[1:]
    assert [line.split("\t")[0] for line in piped] == keys(*names)


def test_list_says_how_many_more_there_are(cache):
    code, out, err = cache("list", "--limit", "2")
    assert (code, len(out.splitlines()), err) == (0, 3, "and 3 more; --limit 0 shows all\n")
    assert cache("list", "--limit", "0").err == ""
    assert cache("list", "--limit", "5").err == ""
    assert cache("list", "--json", "--limit", "1").err == "and 4 more; --limit 0 shows all\n"


def test_nothing_to_list_is_said(cache):
    assert cache("list", "--model", "none") == (0, "", "no stored answer is like that\n")


def test_piped_output_is_plain_and_whole(folder):
    long = "a-model-with-a-very-long-name-" * 4
    with store_in(folder) as store:
        put(store, "long", model=long, stored=time.time(), alias=False)
    code, out, err = finished("cache", "list", "--data-dir", str(folder), env={**os.environ, "COLUMNS": "40"})
    assert (code, err) == (0, "")
    assert "\x1b" not in out
    rows = [line.split("\t") for line in out.splitlines()]
    assert rows[0] == ["key", "tenant", "upstream", "model", "path", "mode", "age", "left", "size"]
    assert rows[1][:6] == [key_of("long").hex(), ALICE, "openai", long, CHAT, "whole"]
    assert {len(row) for row in rows} == {9}


def test_a_name_cannot_move_the_cursor(cache, folder):
    with store_in(folder) as store:
        put(
            store,
            "evil",
            model="m\x1b[2J\r\n\tx\u202e",
            upstream="[red]up[/]",
            stored=time.time(),
            alias=False,
        )
    row = cache("list").out.splitlines()[1].split("\t")
    assert (row[3], row[2]) == ("m?[2J???x?", "[red]up[/]")
    assert "m?[2J???x?" in cache("stats").out


def on_terminal(columns, *arguments):
    """What a person would see, and the exit status."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(
        [sys.executable, "-m", "sidecar", *arguments],
        stdin=subprocess.DEVNULL, stdout=follower, stderr=follower, env=environment,
    ) as running:  # fmt: skip
        os.close(follower)
        shown = b""
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # Linux, when the other end is closed
                break
            if not piece:
                break
            shown += piece
        os.close(leader)
        return shown.decode(), running.wait()


@pytest.mark.parametrize("columns", [80, 160])
def test_a_terminal_gets_a_table_that_fits(folder, columns):
    shown, code = on_terminal(columns, "cache", "list", "--data-dir", str(folder))
    assert code == 0
    lines = [line for line in shown.splitlines() if key_of("two").hex()[:12] in line]
    assert len(lines) == 1
    assert key_of("two").hex()[:13] not in shown
    assert "stream" in lines[0]
    assert len(lines[0]) <= columns
    assert (CHAT in lines[0] and BOB in lines[0]) is (columns == 160)


def test_a_terminal_gets_names_as_they_are(folder):
    with store_in(folder) as store:
        put(store, "markup", model="[red]m[/]", stored=time.time(), alias=False)
    assert "[red]m[/]" in on_terminal(160, "cache", "list", "--data-dir", str(folder))[0]


def test_a_terminal_gets_a_bar_and_refused_lines_above_it(folder, clean):
    file = clean / "lines"
    shown, code = on_terminal(100, "cache", "export", "--output", str(file), "--data-dir", str(folder))
    assert (code, "exporting" in shown, shown.endswith("5 answers exported\r\n")) == (0, True, True)
    file.write_bytes(b"{\n" + file.read_bytes())
    shown, code = on_terminal(100, "cache", "import", str(file), "--data-dir", str(folder))
    assert (code, "importing" in shown) == (1, True)
    assert "line 1 refused: not a JSON object on one line\r\n" in shown
    assert shown.endswith("5 imported, 0 skipped (expired), 1 refused\r\n")
    # Where the answers themselves go to the terminal, a bar would stand between them.
    assert "exporting" not in on_terminal(100, "cache", "export", "--data-dir", str(folder))[0]


def test_who_stops_reading_gets_no_traceback(folder):
    with store_in(folder) as store:
        for number in range(1500):  # more than a pipe holds
            put(store, f"answer {number}", alias=False)
    command = [sys.executable, "-m", "sidecar", "cache", "list", "--limit", "0", "--data-dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == ""
        assert running.wait() == 1


# purge


def test_purge_all(cache, folder):
    assert cache("purge", "--all") == (0, "5 answers purged\n", "")
    assert keys_in(folder) == set()
    assert cache("purge", "--all").out == "0 answers purged\n"


def test_purge_of_a_tenant_takes_its_aliases_too(cache, folder):
    assert cache("purge", "--tenant", ALICE) == (0, "3 answers purged\n", "")
    assert keys_in(folder) == {key_of("two"), alias_of("two"), key_of("five")}


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["--model", "n"], ["three", "four"]),
        (["--upstream", "local", "--path", "/v1"], ["three"]),
        (["--key", key_of("two").hex()[:12]], ["two"]),
        (["--key", key_of("two").hex().upper()], ["two"]),
        (["--key", key_of("two").hex()[:12], "--model", "n"], []),
        (["--path", "/"], ["one", "two", "three", "four", "five"]),
    ],
)
def test_purge_of_what_all_filters_take_takes_their_aliases_too(cache, folder, given, names):
    before = keys_in(folder)
    said = "1 answer purged\n" if len(names) == 1 else f"{len(names)} answers purged\n"
    assert cache("purge", *given) == (0, said, "")
    gone = {key_of(name) for name in names} | {alias_of(name) for name in names}
    assert keys_in(folder) == before - gone


def test_purge_leaves_what_points_elsewhere(cache, folder):
    with store_in(folder) as store:
        store.put(b"x" * 33, point(b"x" * 33, key_of("one")), tag=BOB, seconds=60.0)
        store.put(b"y" * 33, b"SLP1 damaged", tag=BOB, seconds=60.0)
    assert cache("purge", "--key", key_of("one").hex()).code == 0
    left = keys_in(folder)
    assert b"x" * 33 not in left
    assert {b"y" * 33, alias_of("two")} <= left


def test_purge_of_what_is_over(cache, folder):
    with store_in(folder, ago=7200) as store:
        put(store, "over", seconds=60.0)
    assert cache("purge", "--expired") == (0, "2 entries purged, whose time was over\n", "")
    assert cache("purge", "--expired") == (0, "0 entries purged, whose time was over\n", "")
    assert len(keys_in(folder)) == 9


STREAM = "s" + "-_aZ09" * 5 + "xy"


@pytest.mark.parametrize("given", [STREAM, f" {STREAM}\n", f"{STREAM}:12", "8f1d22aa00000007"])
def test_purge_of_what_was_given_under_an_id(cache, folder, given):
    with store_in(folder) as store:
        store.note(key_of("three"), Near(bytes(32), b"vector", b"traits"))
        store.served_all([(STREAM, key_of("three")), ("8f1d22aa00000007", key_of("three"))])
        store.served("8f1d22aa00000008", key_of("one"))
    before = keys_in(folder)
    code, out, err = cache("purge", f"--stream={given}")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert out.startswith(f"1 answer purged: n, {CHAT}, stored ")
    assert out.endswith(f", key {key_of('three').hex()}\n")
    assert keys_in(folder) == before - {key_of("three"), alias_of("three")}
    with store_in(folder) as store:
        assert store.stats().vectors == 0
        assert store.served_key(STREAM) is None
        assert store.served_key("8f1d22aa00000008") == key_of("one")
    assert cache("purge", "--stream", STREAM).code == 1


@pytest.mark.parametrize("given", ["unknown", "", "s" * 5000, "a\x1b[2J\u202e", "\udcff"])
def test_an_id_that_nothing_was_given_under_is_one_line_and_exit_1(cache, folder, given):
    before = keys_in(folder)
    code, out, err = cache("purge", f"--stream={given}")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the last 10,000 ids are remembered" in err
    assert "\x1b" not in err
    assert keys_in(folder) == before


def test_no_id_is_known_where_nothing_is_stored(cli, clean):
    code, out, err = cli("cache", "purge", "--stream", "s1", "--data-dir", str(clean / "none"))
    assert (code, out, err.count("\n")) == (1, "", 2)
    assert not (clean / "none").exists()


def test_what_was_given_under_an_id_goes_though_it_cannot_be_read(cache, folder):
    with store_in(folder, ago=7200) as store:
        put(store, "over", seconds=60.0, alias=False)
        store.put(key_of("damaged"), b"SLA1" + b"?" * 100, tag=ALICE, seconds=9999.0)
        store.served_all([("s1", key_of("over")), ("s2", key_of("damaged"))])
    assert cache("purge", "--stream", "s1").out == f"1 answer purged: key {key_of('over').hex()}\n"
    assert cache("purge", "--stream", "s2").out == f"1 answer purged: key {key_of('damaged').hex()}\n"
    assert len(keys_in(folder)) == 9


@pytest.mark.parametrize(
    "given",
    [
        [],
        ["--all", "--expired"],
        ["--all", "--tenant", ALICE],
        ["--tenant", ALICE, "--model", "m"],
        ["--expired", "--key", "00"],
        ["--stream", "s1", "--all"],
        ["--stream", "s1", "--key", "00"],
        ["--stream", "s1", "--tenant", ALICE],
    ],
)
def test_purge_without_exactly_one_aim_is_one_line_and_exit_2(cache, folder, given):
    code, out, err = cache("purge", *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--all, or --tenant ID, or --expired" in err
    assert len(keys_in(folder)) == 9


@pytest.mark.parametrize(
    ("command", "given"),
    [
        ("purge", ["--tenant", "xyz"]),
        ("purge", ["--tenant", ""]),
        ("list", ["--tenant", "a" * 15]),
        ("purge", ["--key", "xyz"]),
        ("purge", ["--key", ""]),
        ("purge", ["--path", "v1"]),
        ("purge", ["--path", ""]),
        ("list", ["--limit", "-1"]),
        ("list", ["--bogus"]),
        ("bogus", []),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(cache, folder, command, given):
    code, out, err = cache(command, *given)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert len(keys_in(folder)) == 9


def test_work_that_fails_is_one_line_and_exit_1(cache, monkeypatch):
    from sidecar.stores.disk import DiskStore, StoreError

    def fails(*_):
        raise StoreError("answers: the disk is full")

    monkeypatch.setattr(DiskStore, "clear", fails)
    code, out, err = cache("purge", "--all")
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "the disk is full" in err


def test_purging_everything_purges_what_was_compared(cli, tmp_path):
    for name in ("shadow.jsonl", "shadow.jsonl.1"):
        (tmp_path / name).write_text("{}\n")
    code, _, _ = cli("cache", "purge", "--all", "--data-dir", str(tmp_path))
    assert code == 0
    assert not list(tmp_path.glob("shadow*"))
