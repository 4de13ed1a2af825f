"""What README promises is what the tree has: commands, keys, error kinds, log fields."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from sidecar.cli.main import COMMANDS, slipstream
from sidecar.config import KEYS
from sidecar.core.errors import KINDS
from sidecar.core.gaps import NO_GAPS
from sidecar.core.latency import Heard, Trace, record
from sidecar.telemetry.families import BY_NAME, FAMILIES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
OURS = re.sub(r"^sudo .*$", "", README, flags=re.MULTILINE)
"""Without the lines in which other programs do something."""
SHELL = "\n".join(re.findall(r"```sh\n(.*?)```", OURS, re.DOTALL))


def section(title: str) -> str:
    return README.partition(f"## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("command", sorted(set(re.findall(r"slipstream (\w+(?: \w+)?)", SHELL + OURS))))
def test_every_command_exists(command):
    words = command.split()
    if words[0] not in COMMANDS:
        pytest.fail(f"README names `slipstream {words[0]}`")
    if words[0] in ("config", "cache", "model") and len(words) > 1:
        assert CliRunner().invoke(slipstream, [*words, "--help"]).exit_code == 0


def test_every_flag_exists():
    known = CliRunner().invoke(slipstream, ["serve", "--help"]).output
    for words in (
        "demo",
        "doctor",
        "tune",
        "report",
        "model pull",
        *[f"cache {name}" for name in ("stats", "list", "purge", "export", "import")],
    ):
        known += CliRunner().invoke(slipstream, [*words.split(), "--help"]).output
    used = set(re.findall(r"(?<=\s)--[a-z-]+|(?<=`)--[a-z-]+", OURS))
    assert used - {"--"} <= set(re.findall(r"--[a-z-]+", known))


def test_every_key_is_documented_and_exists():
    told = set()
    for row in re.findall(r"^\| (`[^|]+) \|", section("Configuration"), re.MULTILINE):
        names = re.findall(r"`([a-z0-9_.]+)`", row)
        table = names[0].partition(".")[0] if names else ""
        told |= {f"{table}{name}" if name.startswith(".") else name for name in names}
    assert {key for key in told if "." in key} == set(KEYS)


def test_every_error_kind_is_documented_and_exists():
    told = set(re.findall(r"`([a-z_]+)`", section("Errors of the sidecar's own")))
    in_stream = {"upstream_incomplete", "upstream_refused", "upstream_stalled"}
    assert told - {"fault"} == set(KINDS) - in_stream


def test_every_log_field_is_documented():
    trace = Trace.begin("GET")
    fields = {"timestamp", "level", "event", *record(trace, Heard(gaps=NO_GAPS), trace.started)}
    told = set(re.findall(r"`([a-z_0-9]+)", section("The latency line")))
    assert fields <= told


def test_every_metric_is_documented_and_exists():
    told = set(re.findall(r"`((?:slipstream|gen_ai_client)_\w+)`", section("See where the time goes")))
    assert told == set(BY_NAME)
    labels = {label for family in FAMILIES for label in family.labels}
    rows = re.findall(r"^\| `(?:slipstream|gen_ai)_[^|]*\|([^|]*)\|$", README, re.MULTILINE)
    assert labels <= set(re.findall(r"`(\w+)`", " ".join(rows)))


def test_the_two_commands_stand_for_themselves():
    """Each does all its set-up; the gate runs the second exactly as written."""
    blocks = re.findall(r"```sh\n(python3 -m venv .*?)\n```", README)
    assert len(blocks) == 2
    assert all("pip install" in block and shlex.split(block) for block in blocks)
    assert README.index("<!-- test command -->") < README.index(blocks[1])
