"""sidecar.cli.doctor_show: lines for people and a document for machines; and what comes from elsewhere in them."""

import json
import os
import pty
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.cli.doctor_show import Report, fail, milliseconds, ok, plural, printable, size, warn

FINDINGS = [
    ok("first", "all is well", ms=1.5),
    warn("second", "not quite", "do this"),
    fail("third", "not at all", "do that\nnow \x1b[31m"),
]


def test_a_finding_is_a_line_and_what_to_do_another(capsys):
    report = Report(as_json=False)
    report.add(*FINDINGS)
    report.note("and now")
    report.finish("by the way")
    assert capsys.readouterr().out.splitlines() == [
        "  ok   first              all is well",
        "  warn second             not quite",
        "                          -> do this",
        "  FAIL third              not at all",
        "                          -> do that\\nnow \\x1b[31m",
        "  and now",
        "",
        "  1 ok, 1 to look at, 1 FAILED",
        "  by the way",
    ]
    assert report.failed


def test_warnings_are_no_failure(capsys):
    report = Report(as_json=False)
    report.add(*FINDINGS[:2])
    report.finish()
    assert not report.failed
    assert capsys.readouterr().out.endswith("  1 ok, 1 to look at\n")


def test_the_document(capsys):
    report = Report(as_json=True)
    report.add(*FINDINGS)
    report.note("and now")
    report.finish("by the way")
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert (document["exit"], document["ok"], document["warn"], document["fail"]) == (1, 1, 1, 1)
    assert document["findings"][0]["data"] == {"ms": 1.5}
    assert err == "and now\n"


@given(st.text())
def test_nothing_from_elsewhere_ends_a_line_or_steers_a_terminal(text):
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown) < 700


def test_on_a_terminal_it_is_folded_and_coloured():
    """A long text goes on below its own column, and no line is wider than the terminal."""
    code = (
        "from sidecar.cli.doctor_show import *\n"
        "report = Report(as_json=False)\n"
        "report.add(fail('check', 'word ' * 30, 'remedy ' * 30))\n"
    )
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "70", "TERM": "xterm"}
    running = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, env=environment)
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:  # the other side is closed
        pass
    os.close(ours)
    assert running.wait() == 0
    lines = said.decode().splitlines()
    assert "\x1b[31m" in lines[0]
    plain = [line.replace("\x1b[31m", "").replace("\x1b[1m", "").replace("\x1b[0m", "") for line in lines]
    assert len(plain) > 4
    assert max(map(len, plain)) <= 70
    assert all(line.startswith(" " * 26) for line in plain[1:])
    assert plain[0].startswith("  FAIL check")


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (milliseconds(0.00123), "1.2 ms"),
        (milliseconds(0.0123), "12 ms"),
        (milliseconds(1.25), "1.2 s"),
        (plural(1, "piece"), "1 piece"),
        (plural(2000, "piece"), "2,000 pieces"),
        (plural(2, "reply", "replies"), "2 replies"),
        (size(100), "100 bytes"),
        (size(1536), "1.5 KiB"),
        (size(64 << 20), "64 MiB"),
        (size(3 << 40), "3.0 TiB"),
    ],
)
def test_figures_as_people_read_them(shown, text):
    assert shown == text
