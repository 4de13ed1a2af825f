"""sidecar.cli.env: the variables that make official SDKs use the sidecar."""

import shlex
import subprocess

import pytest

NAMES = ["OPENAI_BASE_URL", "ANTHROPIC_BASE_URL", "GOOGLE_GEMINI_BASE_URL", "OLLAMA_HOST"]


def lines(url, openai):
    return dict(zip(NAMES, [openai, url, url, url], strict=True))


@pytest.mark.parametrize(
    ("arguments", "url", "openai"),
    [
        ([], "http://127.0.0.1:8400", "http://127.0.0.1:8400/v1"),
        (["--port", "1"], "http://127.0.0.1:1", "http://127.0.0.1:1/v1"),
        (["--host", "0.0.0.0"], "http://127.0.0.1:8400", "http://127.0.0.1:8400/v1"),
        (["--host", "::"], "http://[::1]:8400", "http://[::1]:8400/v1"),
        (["--host", "fe80::1"], "http://[fe80::1]:8400", "http://[fe80::1]:8400/v1"),
        (["--host", "sidecar.internal"], "http://sidecar.internal:8400", "http://sidecar.internal:8400/v1"),
        (["--upstream", "https://api.openai.com"], "http://127.0.0.1:8400", "http://127.0.0.1:8400/v1"),
        (["--upstream", "https://host/"], "http://127.0.0.1:8400", "http://127.0.0.1:8400/v1"),
    ],
)
def test_export_lines(cli, arguments, url, openai):
    code, out, err = cli("env", *arguments)
    assert (code, err) == (0, "")
    words = [shlex.split(line) for line in out.splitlines()]
    assert all(line.startswith("export ") for line in out.splitlines())
    assert dict(word.split("=", 1) for _, word in words) == lines(url, openai)


def tables(*made):
    return "".join(
        f"[[upstreams]]\nname = 'u{number}'\nurl = 'http://u{number}'\n{keys}\n"
        for number, keys in enumerate(made)
    )


HERE = "http://127.0.0.1:8400"


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        # The `/v1` is in the upstream's URL already; only OpenAI's clients bring none.
        ("", ["--upstream", "https://host/v1"], {"OPENAI_BASE_URL": HERE}),
        ("", ["--upstream", "https://host/v1/"], {"OPENAI_BASE_URL": HERE}),
        (tables(""), [], lines(HERE, HERE + "/v1")),
        (tables("paths = ['/v1/messages']"), [], {"ANTHROPIC_BASE_URL": HERE}),
        (
            tables("paths = ['/v1beta']", "paths = ['/api']"),
            [],
            {"GOOGLE_GEMINI_BASE_URL": HERE, "OLLAMA_HOST": HERE},
        ),
        # Without the header nothing takes it, and SDKs that send it are not what a variable can tell.
        (tables("paths = ['/v1']\nheader = 'x-mine'"), [], {}),
        (tables("paths = ['/groq']\nstrip = true"), [], {"OPENAI_BASE_URL": HERE + "/groq/v1"}),
        (tables("paths = ['/groq/']\nstrip = true"), [], {"OPENAI_BASE_URL": HERE + "/groq/v1"}),
        (tables("paths = ['/groq']\nstrip = true", ""), [], lines(HERE, HERE + "/v1")),
        (tables("paths = ['/groq']"), [], {}),
    ],
)
def test_only_variables_whose_paths_some_upstream_takes(cli, clean, text, arguments, expected):
    (clean / "x.toml").write_text(text)
    code, out, err = cli("env", "--config", "x.toml", *arguments)
    assert (code, err) == (0, "")
    words = [shlex.split(line) for line in out.splitlines()]
    assert dict(word.split("=", 1) for _, word in words) == expected


def test_the_environment_counts(cli):
    assert (
        cli("env", SLIPSTREAM_SERVER__PORT="5").out.splitlines()[-1]
        == "export OLLAMA_HOST=http://127.0.0.1:5"
    )


@pytest.mark.parametrize("host", ["a;touch made", "$(touch made)", "`touch made`", "a b", "~", "a'b"])
def test_a_shell_that_evaluates_them_only_assigns(cli, clean, host):
    code, out, _ = cli("env", "--host", host)
    if code != 2:  # refusing such a host would be as good
        done = subprocess.run(
            ["sh", "-c", out + 'printf %s "$OLLAMA_HOST"'],
            capture_output=True,
            text=True,
            check=False,
            cwd=clean,
        )
        assert done.stdout == f"http://{host}:8400"
        assert not (clean / "made").exists()
