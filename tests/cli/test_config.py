"""sidecar.config and sidecar.cli.config: every value's way into the configuration, and every refusal."""

import json
import math
import re
import tomllib
from hashlib import sha256

import msgspec
import pytest

from sidecar.cli.config import schema
from sidecar.config import KEYS, Config, load
from sidecar.core.types import Request
from sidecar.core.values import ConfigError, Duration, Patience, Size
from sidecar.serving.routes import Routes
from sidecar.tables import BUDGETS

SECRET = "hunter2"


def toml(folder, text):
    path = folder / "slipstream.toml"
    path.write_text(text, encoding="utf-8")
    return path


def value_of(config, key):
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


# Defaults that users rely on.
DEFAULTS = {
    "server.host": "127.0.0.1",
    "server.port": 8400,
    "server.workers": 1,
    "admin.host": "127.0.0.1",
    "admin.port": 8401,
    "timeouts.connect": 10,
    "timeouts.head": 600,
    "timeouts.stall": 300,
    "limits.body": 32 << 20,
    "limits.headers": 64 << 10,
    "limits.connections": 10_000,
    "limits.requests": 10_000,
    "keepalive.interval": 15,
    "keepalive.early": 0,
    "disconnect.default": 0,
    "disconnect.paths": {},
    "resume.keep": 600,
    "resume.memory": 256 << 20,
    "resume.grace": 15,
    "jobs.keep": 86_400,
    "jobs.concurrency": 16,
    "jobs.queue": 1000,
    "jobs.webhooks": [],
    "cache.mode": "exact",
    "cache.collapse": True,
    "shutdown.grace": 30,
    "log.level": "info",
}


@pytest.mark.parametrize(("key", "value"), DEFAULTS.items())
def test_defaults(key, value):
    assert value_of(load(environment={}).config, key) == value


# key, a value for the file, the variable, the flag; the variable's and the flag's as text
LAYERS = [
    ("server.port", "1", "2", ("--port", "3"), (1, 2, 3)),
    ("server.host", '"::1"', "::2", ("--host", "::3"), ("::1", "::2", "::3")),
    (
        "server.upstream",
        '"http://a"',
        "http://b",
        ("--upstream", "http://c"),
        ("http://a", "http://b", "http://c"),
    ),
    ("server.data_dir", '"a"', "b", ("--data-dir", "c"), ("a", "b", "c")),
    ("admin.port", "1", "2", ("--admin-port", "3"), (1, 2, 3)),
    ("admin.host", '"::1"', "127.0.0.2", ("--admin-host", "localhost"), ("::1", "127.0.0.2", "localhost")),
    ("cache.mode", '"exact"', "shadow", ("--cache", "off"), ("exact", "shadow", "off")),
    ("log.format", '"json"', "console", ("--log-format", "json"), ("json", "console", "json")),
]


@pytest.mark.parametrize(
    ("key", "in_file", "in_environment", "flag", "values"), LAYERS, ids=[row[0] for row in LAYERS]
)
def test_flags_before_environment_before_file(cli, clean, key, in_file, in_environment, flag, values):
    section, _, name = key.partition(".")
    path = toml(clean, f"[{section}]\n{name} = {in_file}\n")
    variable = f"SLIPSTREAM_{section}__{name}".upper()
    layers = [
        (["--config", str(path)], {}, str(path)),
        (["--config", str(path)], {variable: in_environment}, variable),
        (["--config", str(path), *flag], {variable: in_environment}, flag[0]),
    ]
    for value, (arguments, environment, _origin) in zip(values, layers, strict=True):
        code, out, err = cli("config", "show", *arguments, **environment)
        assert (code, err) == (0, "")
        assert tomllib.loads(out)[section][name] == value
    # Where a value came from stands beside it.
    for (arguments, environment, origin), value in zip(layers, values, strict=True):
        shown = cli("config", "show", *arguments, **environment).out
        assert re.search(rf"^{name} = .*{re.escape(str(value))}.*# {re.escape(origin)}$", shown, re.MULTILINE)


def test_every_key_is_also_a_variable():
    samples = {float: "0.5", Duration: "7s", Size: "7KiB", bool: "false", list: "https://x,https://y"}
    spelt = {
        "log.format": "json",
        "admin.host": "127.0.0.2",
        "admin.hosts": "a.internal,[::1]:8401",
        "admin.token_sha256": "0" * 64,
        "metrics.enabled": "false",
        "server.workers": "7",
        "server.allow_public": "true",
        "otel.endpoint": "http://x",
        "cache.mode": "off",
        "disconnect.default": "grace=7",
        "disconnect.paths": "/a=finish,/b=grace=7",
        "cache.share": "upstream",
        "cache.fresh_ids": "true",
        "cache.uncompressed": "true",
        "cache.replay": "paced",
        "cache.max_temperature": "0.5",
        "cache.paths": "/a=7s,/b=0",
        "semantic.record_texts": "true",
        "semantic.paths": "/a=0.5,/b=1",
        "semantic.namespaces": "a=0.5,b=1",
        "semantic.embedder": "http://x/v1/embeddings",
        "semantic.skip_guards": "names,numbers",
    }
    for key in KEYS:
        default = value_of(Config(), key)
        sample = samples.get(
            type(default), "1" if isinstance(default, int) else "warning" if key == "log.level" else None
        )
        sample = spelt.get(key) or sample or ("http://x" if key == "server.upstream" else "x")
        variable = "SLIPSTREAM_" + key.replace(".", "__").upper()
        needed = (
            {"SLIPSTREAM_TLS__CERTIFICATE", "SLIPSTREAM_TLS__KEY"} if key.startswith("tls.") else {variable}
        )
        found = load(environment=dict.fromkeys(needed, "y") | {variable: sample})
        assert found.origins[key] == variable
        assert len(found.origins) == len(needed)
        value = value_of(found.config, key)
        told = {"True", "False", "['https://x', 'https://y']", "{'/a': inf, '/b': 7.0}"}
        told |= {
            "{'/a': 0.5, '/b': 1.0}",
            "{'a': 0.5, 'b': 1.0}",
            "['names', 'numbers']",
            "['a.internal', '[::1]:8401']",
        }
        if key == "cache.paths":
            value = {prefix: rule.ttl for prefix, rule in value.items()}
            told.add("{'/a': 7.0, '/b': 0.0}")
        assert str(value) in (sample, "7.0", "7168", *told)
        assert value != default


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("30", 30),
        (30, 30),
        (0.5, 0.5),
        ("250ms", 0.25),
        ("1.5 s", 1.5),
        ("10m", 600),
        ("24h", 86400),
        ("1d", 86400),
        (" 5 ", 5),
    ],
)
def test_times(written, seconds):
    assert load({"timeouts.stall": written}, {}).config.timeouts.stall == seconds


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (65536, 65536),
        ("65536", 65536),
        ("64KiB", 65536),
        ("64kB", 64000),
        ("1.5MiB", 3 << 19),
        ("1GB", 10**9),
        ("1 GiB", 1 << 30),
        ("5B", 5),
    ],
)
def test_sizes(written, size):
    assert load({"limits.body": written}, {}).config.limits.body == size


@pytest.mark.parametrize("written", ["off", "false", "OFF", False, 0])
def test_early_keepalives_may_be_switched_off_by_name(written):
    assert load({"keepalive.early": written}, {}).config.keepalive.early == 0


# file, environment, flags -> what the one line must name
REFUSALS = [
    ("[server]\nprot = 1", {}, [], ["server.prot", "server.port"]),
    ("[srever]\nport = 1", {}, [], ["[srever]", "server"]),
    ("[timeouts]\nconnnect = 1", {}, [], ["timeouts.connnect", "timeouts.connect"]),
    ("[zzz]\na = 1", {}, [], ["[zzz]", "keepalive"]),
    ("server = 1", {}, [], ["server", "[server]"]),
    ("[server\n", {}, [], ["slipstream.toml", "not valid TOML"]),
    ("[server]\nport = 70000", {}, [], ["server.port = 70000", "65535", "slipstream.toml"]),
    ("[server]\nport = -1", {}, [], ["server.port = -1", "0"]),
    ("[server]\nport = 1.5", {}, [], ["server.port = 1.5", "int"]),
    ("[server]\nport = true", {}, [], ["server.port = True", "int"]),
    ("[server]\nhost = 5", {}, [], ["server.host = 5", "str"]),
    ("[server]\nworkers = 65", {}, [], ["server.workers = 65", "64"]),
    ("[limits]\nrequests = 0", {}, [], ["limits.requests = 0", "1"]),
    ("[limits]\nbody = '64 QiB'", {}, [], ["limits.body", "'64 QiB'", "64KiB"]),
    ("[limits]\nbody = -1", {}, [], ["limits.body = -1", "64KiB"]),
    ("[timeouts]\nstall = 'soon'", {}, [], ["timeouts.stall = 'soon'", "250ms"]),
    ("[timeouts]\nstall = true", {}, [], ["timeouts.stall = True", "250ms"]),
    ("[timeouts]\nstall = nan", {}, [], ["timeouts.stall = nan", "250ms"]),
    ("[timeouts]\nstall = [1]", {}, [], ["timeouts.stall", "250ms"]),
    ("[keepalive]\ninterval = 'off'", {}, [], ["keepalive.interval = 'off'", "250ms"]),
    ("[log]\nlevel = 'loud'", {}, [], ["log.level = 'loud'"]),
    ("", {"SLIPSTREAM_SERVER__PORT": "x"}, [], ["server.port = 'x'", "SLIPSTREAM_SERVER__PORT"]),
    ("", {"SLIPSTREAM_SERVER_PORT": "1"}, [], ["SLIPSTREAM_SERVER_PORT", "SLIPSTREAM_SERVER__PORT"]),
    ("", {"SLIPSTREAM_SERVER__PROT": "1"}, [], ["SLIPSTREAM_SERVER__PROT", "SLIPSTREAM_SERVER__PORT"]),
    ("", {}, ["--port", "x"], ["server.port = 'x'", "--port"]),
    ("", {}, ["--workers", "0"], ["server.workers = '0'", "--workers"]),
    ("", {}, ["--upstream", "api.openai.com"], ["server.upstream", "https://"]),
    ("", {}, ["--upstream", "ftp://host"], ["server.upstream", "ftp://host", "https://"]),
    ("", {}, ["--upstream", "http://host:port"], ["server.upstream", "https://"]),
    ("", {}, ["--upstream", "http://host:0"], ["server.upstream", "https://"]),
    ("", {}, ["--upstream", "http://[::1"], ["server.upstream", "https://"]),
    ("", {}, ["--upstream", "http://"], ["server.upstream", "https://"]),
    ("", {}, ["--upstream", ""], ["server.upstream", "https://"]),
    ("", {}, ["--upstream", "http://host/?a=b"], ["server.upstream", "query"]),
    ("", {}, ["--upstream", "http://host/\nx"], ["server.upstream"]),
    ("", {}, ["--upstream", "http://hö.st"], ["server.upstream"]),
    ("", {}, ["--config", "missing.toml"], ["missing.toml", "No such file"]),
    ("", {}, ["--config", "."], ["cannot be read"]),
    ("upstreams = 1", {}, [], ["[[upstreams]]"]),
    ("upstreams = [1]", {}, [], ["upstreams[0]"]),
    ("[[upstreams]]\nname = 'a'", {}, [], ["upstreams[0]", "url"]),
    ("[[upstreams]]\nname = 'a'\nurl = 'http://a'\npath = ['/']", {}, [], ["upstreams[0].path", "paths"]),
    (
        "[[upstreams]]\nname = 'a'\nurl = 'http://a'\npaths = ['v1']",
        {},
        [],
        ["upstreams[0].paths", "'v1'", "/v1"],
    ),
    ("[[upstreams]]\nname = 'a'\nurl = 'http://a'\npaths = '/'", {}, [], ["upstreams[0]", "array"]),
    ("[[upstreams]]\nname = ''\nurl = 'http://a'", {}, [], ["upstreams[0].name"]),
    ("[[upstreams]]\nname = 'a'\nurl = 'http://a'\n" * 2, {}, [], ["upstreams[1].name", "'a'"]),
    ("[[upstreams]]\nname = 'a'\nurl = 'a'", {}, [], ["upstreams[0].url", "https://"]),
    (
        "[server]\nupstream = 'http://b'\n[[upstreams]]\nname = 'a'\nurl = 'http://a'",
        {},
        [],
        ["server.upstream", "[[upstreams]]"],
    ),
    ("", {"SLIPSTREAM_PORT": "1"}, [], ["SLIPSTREAM_PORT", "SLIPSTREAM_SERVER__PORT"]),
    ("", {"SLIPSTREAM_UPSTREAM": "http://a"}, [], ["SLIPSTREAM_UPSTREAM", "SLIPSTREAM_SERVER__UPSTREAM"]),
    ("", {"SLIPSTREAM_STALL": "1"}, [], ["SLIPSTREAM_STALL", "SLIPSTREAM_TIMEOUTS__STALL"]),
    ("[limits]\nheaders = 1023", {}, [], ["limits.headers = 1023", "1024"]),
    ("[limits]\nheaders = 0", {}, [], ["limits.headers = 0", "1024"]),
    # A line stays a line, whatever is in it.
    ('[server]\n"a\\nb" = 1', {}, [], ["unknown key"]),
    ('["a\\nb"]', {}, [], ["unknown table"]),
    ("[[upstreams]]\nname = 'a'\nurl = 'http://a'\n\"b\\u001bc\" = 1", {}, [], ["unknown key"]),
]


@pytest.mark.parametrize(("text", "environment", "flags", "named"), REFUSALS)
def test_a_refusal_is_one_line_that_names_key_value_and_remedy(cli, clean, text, environment, flags, named):
    where = [] if "--config" in flags else ["--config", str(toml(clean, text))]
    code, out, err = cli("config", "validate", *where, *flags, **environment)
    assert (code, out) == (2, "")
    assert err.startswith("slipstream: ")
    assert err.count("\n") == 1
    assert err.removesuffix("\n").isprintable()
    for part in named:
        assert part in err


@pytest.mark.parametrize(
    ("flags", "environment"),
    [({"server.upstream": "http://b"}, {}), ({}, {"SLIPSTREAM_SERVER__UPSTREAM": "http://b"})],
)
def test_an_upstream_by_flag_or_variable_goes_before_the_files_tables(clean, flags, environment):
    file = toml(clean, "[[upstreams]]\nname = 'a'\nurl = 'http://a'")
    config = load(flags, environment, file=file).config
    assert (config.server.upstream, config.upstreams) == ("http://b", [])


@pytest.mark.parametrize("url", [SECRET, "api.openai.com"])
@pytest.mark.parametrize("key", ["server.upstream", "upstreams[0].url"])
def test_what_is_no_url_at_all_is_not_repeated(cli, clean, key, url):
    """A key that was put in the wrong place, say."""
    text = (
        f"[server]\nupstream = '{url}'"
        if key == "server.upstream"
        else f"[[upstreams]]\nname = 'a'\nurl = '{url}'"
    )
    code, out, err = cli("config", "validate", "--config", str(toml(clean, text)))
    assert (code, out) == (2, "")
    assert err.startswith(f"slipstream: {key}")
    assert url not in err.replace("such as https://api.openai.com", "")


def test_the_least_size_of_headers_is_accepted():
    assert load({"limits.headers": 1024}, {}).config.limits.headers == 1024


def test_a_file_that_is_no_text(cli, clean):
    (clean / "x.toml").write_bytes(b"\xff\xfe")
    code, _, err = cli("config", "validate", "--config", "x.toml")
    assert (code, err.count("\n")) == (2, 1)
    assert "not valid TOML" in err


SECRETS = [
    f"https://user:{SECRET}@api.openai.com",
    f"https://{SECRET}@api.openai.com",
    f"https://:{SECRET}@api.openai.com",
    f"ftp://user:{SECRET}@host",
    f"user:{SECRET}@api.openai.com",
    f"//user:{SECRET}@host",
    f"https:/user:{SECRET}@host",
    f"https:user:{SECRET}@host",
    f"https://user:{SECRET}@host:port",
    f"https://user:{SECRET}@[::1",
    f"https://host/?key={SECRET}",
    f"https://?key={SECRET}",
    f"ftp://host/?key={SECRET}",
    f"host/?key={SECRET}",
    f"https://host/#{SECRET}",
]


@pytest.mark.parametrize("url", SECRETS)
@pytest.mark.parametrize("way", ["flag", "variable", "file", "upstreams"])
def test_no_refusal_shows_what_may_be_a_secret(cli, clean, url, way):
    text = {
        "file": f"[server]\nupstream = '{url}'",
        "upstreams": f"[[upstreams]]\nname = 'a'\nurl = '{url}'",
    }.get(way, "")
    flags = ["--upstream", url] if way == "flag" else []
    environment = {"SLIPSTREAM_SERVER__UPSTREAM": url} if way == "variable" else {}
    for command in ("show", "validate"):
        code, out, err = cli("config", command, "--config", str(toml(clean, text)), *flags, **environment)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "upstream" in err
        assert SECRET not in err


def test_nor_does_one_of_a_value_that_is_no_text(cli, clean):
    code, _, err = cli(
        "config", "show", "--config", str(toml(clean, f"[server]\nupstream = ['{SECRETS[0]}']"))
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "server.upstream" in err
    assert SECRET not in err


UPSTREAMS = """
[timeouts]
connect = "250ms"
head = "12345678ms"
stall = "20d"
[limits]
body = "1.5MiB"
[keepalive]
early = "off"
[[upstreams]]
name = "a"
url = "https://a.test/v1"
paths = ["/a", "/b"]
strip = true
[[upstreams]]
name = "b"
url = "http://[::1]:8080"
header = "x-b"
"""


@pytest.mark.parametrize(
    "text", ["", UPSTREAMS, '[server]\nupstream = "http://x"\ndata_dir = "a \\"b\\" \\\\ ü"']
)
def test_what_is_shown_is_what_is_in_force(cli, clean, text):
    path = toml(clean, text)
    code, out, err = cli("config", "show", "--config", str(path))
    assert (code, err) == (0, "")
    again = clean / "again.toml"
    again.write_text(out, encoding="utf-8")
    assert load(environment={}, file=again).config == load(environment={}, file=path).config
    assert cli("config", "validate", "--config", str(again)) == (0, "the configuration is valid\n", "")


def test_every_key_is_shown(cli):
    shown = cli("config", "show").out
    assert all(re.search(rf"^(# )?{key.partition('.')[2]} ", shown, re.MULTILINE) for key in KEYS)


def test_the_schema_knows_every_key(cli):
    code, out, _ = cli("config", "schema")
    assert code == 0
    found = json.loads(out)
    assert found == json.loads(json.dumps(schema()))
    tables = found["properties"]
    for key in KEYS:
        section, _, name = key.partition(".")
        assert name in tables[section]["properties"]
    assert set(tables["upstreams"]["items"]["properties"]) == {
        *(
            "name",
            "url",
            "paths",
            "header",
            "strip",
            "disconnect",
            "cache",
            "threshold",
            "key_file",
            "key_header",
        )
    }
    assert set(tables["clients"]["items"]["properties"]) == {
        *("name", "token_sha256", "namespace", "requests", "rate")
    }


def test_unset_flags_and_other_variables_change_nothing():
    found = load({"server.port": None}, {"SLIPSTREAM": "x", "SLIPSTREAM_X": "y", "SLIP": "z"})
    assert (found.config, found.origins) == (Config(), {})


def test_a_configuration_cannot_be_changed():
    with pytest.raises(AttributeError):
        load(environment={}).config.server.port = 1
    assert issubclass(ConfigError, Exception)
    assert not issubclass(ConfigError, msgspec.MsgspecError)


@pytest.mark.parametrize(
    ("written", "seconds", "shown"),
    [
        ("cancel", 0, "cancel"),
        ("Finish", math.inf, "finish"),
        ("grace=30", 30, "grace=30"),
        ("grace = 2m", 120, "grace=120"),
        ("grace=250ms", 0.25, "grace=0.25"),
        ("grace=0", 0, "cancel"),
    ],
)
def test_what_becomes_of_a_call(written, seconds, shown):
    assert Patience.parse(written) == seconds
    assert str(Patience.parse(written)) == shown


@pytest.mark.parametrize(
    "written", ["", "grace", "grace=", "grace=-1", "grace=x", "graces=1", "keep", 5, None, True]
)
def test_what_is_no_way_to_leave(written):
    with pytest.raises(ValueError, match="expected"):
        Patience.parse(written)


def test_who_says_what_becomes_of_a_call(tmp_path):
    file = tmp_path / "slipstream.toml"
    file.write_text(
        """
        [disconnect]
        default = "grace=5"
        paths = { "/v1/responses" = "finish", "/v1" = "grace=9", "/v1/responses/x" = "cancel" }
        [[upstreams]]
        name = "kept"
        url = "http://127.0.0.1:1"
        paths = ["/kept", "/v1"]
        disconnect = "finish"
        [[upstreams]]
        name = "other"
        url = "http://127.0.0.1:2"
        """
    )
    routes = Routes(load(environment={}, file=file).config)

    def patience(path):
        request = Request("POST", path.encode(), path, "", (), {})
        return routes.patience(path, routes.match(request))

    assert patience("/other") == 5
    assert patience("/kept/x") == math.inf
    assert patience("/v1/chat/completions") == 9  # the path's goes before the upstream's
    assert patience("/v1/responses") == math.inf
    assert patience("/v1/responses/y") == math.inf
    assert patience("/v1/responses/x") == 0
    assert patience("/v1/responsesx") == 9


@pytest.mark.parametrize(
    "table",
    [
        '[disconnect]\npaths = { "v1" = "finish" }',
        '[disconnect]\npaths = { "/v1" = "end" }',
        "[disconnect]\npaths = 5",
    ],
)
def test_a_path_that_is_none_is_one_line(tmp_path, table):
    file = tmp_path / "slipstream.toml"
    file.write_text(table)
    with pytest.raises(ConfigError, match=r"^disconnect\.paths[^\n]+$"):
        load(environment={}, file=file)


def test_the_file_that_config_show_prints_is_the_same_configuration(cli, tmp_path):
    file = tmp_path / "slipstream.toml"
    file.write_text(
        '[disconnect]\ndefault = "finish"\npaths = { "/a b" = "grace=1.5" }\n[jobs]\nwebhooks = ["https://x.test"]\n'
        '[[upstreams]]\nname = "u"\nurl = "http://u.test"\ndisconnect = "grace=3"\n'
    )
    code, out, _ = cli("config", "show", "--config", str(file))
    assert code == 0
    again = tmp_path / "again.toml"
    again.write_text(out)
    assert load(environment={}, file=again).config == load(environment={}, file=file).config


GIVEN = {
    "cache": {"mode": "off"},
    "keepalive": {"interval": "2s"},
    "upstreams": [{"name": "a", "url": "http://a.test", "paths": ["/"]}],
}


def test_what_would_be_in_a_file_can_be_given_as_it_is():
    loaded = load({"cache.ttl": None}, {"SLIPSTREAM_KEEPALIVE__INTERVAL": "3"}, GIVEN)
    assert (loaded.config.cache.mode, float(loaded.config.keepalive.interval)) == ("off", 3.0)
    assert [upstream.name for upstream in loaded.config.upstreams] == ["a"]
    assert loaded.origins["cache.mode"] == loaded.origins["upstreams"] == "the given mapping"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cach": {}}, r"\[cach\]: unknown table"),
        ({"cache": {"mod": "off"}}, "cache.mod: unknown key"),
        ({"cache": 1}, "cache: expected a table"),
        ({"cache": {"mode": "none"}}, "from the given mapping"),
    ],
)
def test_a_mapping_that_is_no_configuration(given, said):
    with pytest.raises(ConfigError, match=said):
        load({}, {}, given)


def test_budgets_are_defaults_that_each_layer_changes_in_part(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[budgets.chat]\nttft_ms = 500\n\n[budgets.search]\ntotal_ms = 900\n")
    found = load(environment={"SLIPSTREAM_BUDGETS__SEARCH__TTFT_MS": "80"}, file=file)
    budgets = found.config.budgets
    assert (budgets["chat"].ttft_ms, budgets["chat"].total_ms) == (500, BUDGETS["chat"].total_ms)
    assert (budgets["search"].ttft_ms, budgets["search"].total_ms) == (80, 900)
    assert budgets["batch"] == BUDGETS["batch"]
    assert found.origins["budgets.search.ttft_ms"] == "SLIPSTREAM_BUDGETS__SEARCH__TTFT_MS"
    assert found.origins["budgets.chat.ttft_ms"] == str(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("budgets = 3", "budgets: expected tables"),
        ("[budgets]\nchat = 3", "budgets.chat: expected a table"),
        ("[budgets.chat]\nttft = 3", "budgets.chat.ttft: unknown key; did you mean ttft_ms?"),
        ("[budgets.chat]\nttft_ms = -3", "budgets.chat.ttft_ms = -3: expected"),
        ('[budgets.chat]\nttft_ms = "fast"', "budgets.chat.ttft_ms = 'fast': expected"),
        ('[budgets."a b"]\nttft_ms = 1', "budgets.a b: expected a name without dots and spaces"),
        ('[admin]\nhost = "0.0.0.0"', "admin.host = '0.0.0.0': beyond loopback it needs admin.token_sha256"),
        ('[admin]\ntoken_sha256 = "hunter2"', "admin.token_sha256: expected 64 hexadecimal digits"),
        (f'[admin]\ntoken_sha256 = "{sha256().hexdigest()}"', "admin.token_sha256: the SHA-256 of nothing"),
        ('[admin]\nhosts = ["http://x"]', "admin.hosts = 'http://x': expected a host name"),
        ('[otel]\nendpoint = "collector"', "otel.endpoint: expected a URL"),
        ("[otel]\ninterval = 0", "otel.interval = 0: expected more than 0"),
    ],
)
def test_what_is_wrong_with_budgets_and_the_admin_port_is_said(cli, clean, text, said):
    (clean / "c.toml").write_text(text)
    result = cli("config", "validate", "--config", "c.toml")
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert said in result.err
    assert "hunter2" not in result.err


def test_a_variable_of_a_budget_that_is_misspelt(cli):
    result = cli("config", "validate", SLIPSTREAM_BUDGETS__CHAT__TTFT="1")
    assert result.code == 2
    assert "SLIPSTREAM_BUDGETS__CHAT__TTFT_MS" in result.err
