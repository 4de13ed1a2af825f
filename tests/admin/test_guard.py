"""sidecar.web.admin.guard: who may ask for what, as a table of headers."""

import hashlib
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from sidecar.config import load
from sidecar.serving.intake import request_of
from sidecar.web.admin.answer import ProblemError
from sidecar.web.admin.guard import admit, permit, rules

TOKEN = b"correct horse \xe4"
DIGEST = hashlib.sha256(TOKEN).hexdigest()
HERE = (b"Host", b"localhost:8401")


def rules_for(host="127.0.0.1", token=DIGEST, hosts=(), addresses=()):
    flags = {"admin.host": host, "admin.token_sha256": token, "admin.hosts": list(hosts)}
    return rules(load(flags, environment={}).config, addresses)


LOCAL = rules_for()
OPEN = rules_for("0.0.0.0")


def asked(*fields, method="GET", target=b"/stats"):
    return request_of(method, target, fields)


def refusal(decide, *arguments):
    """The kind and status of a refusal; None where there is none."""
    try:
        decide(*arguments)
    except ProblemError as error:
        kind = dict(error.answer.more)[b"Slipstream-Error"].decode()
        return kind, error.answer.status
    return None


FOREIGN_HOST = ("foreign_host", 403)
FOREIGN_ORIGIN = ("foreign_origin", 403)
FOREIGN_SITE = ("foreign_site", 403)
TOKEN_REQUIRED = ("token_required", 401)
NO_TOKEN = ("no_token", 403)


@pytest.mark.parametrize(
    "value",
    [
        "localhost",
        "localhost:1",
        "LocalHost:8401",
        "127.0.0.1:8401",
        "127.0.0.1",
        "127.9.8.7",
        "[::1]:8401",
        "[::1]",
    ],
)
def test_hosts_that_are_this_machine(value):
    assert refusal(admit, LOCAL, asked((b"Host", value.encode()))) is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "evil.test",
        "evil.test:8401",
        "localhost.evil.test",
        "a.localhost",
        "localhost.",
        "127.0.0.1.evil.test",
        "127.1",
        "0x7f.0.0.1",
        "2130706433",
        "0177.0.0.1",
        "0.0.0.0:8401",
        "[::]",
        "10.0.0.1",
        "[::ffff:10.0.0.1]",
        "169.254.169.254",
        "::1",
        "[::1",
        "localhost:",
        "localhost:x",
        "localhost:8401:8401",
        "localhost:8401, evil.test",
        "user@localhost",
        "localhost/",
        "localhost#",
        "localhost evil.test",
        "\xe9",
        "ſocalhost",
    ],
)
def test_hosts_that_are_not(value):
    for target in (b"/", b"/stats", b"/healthz", b"/dashboard.js", b"/nowhere"):
        got = refusal(admit, LOCAL, asked((b"Host", value.encode()), target=target))
        assert got == FOREIGN_HOST, (value, target)


def test_exactly_one_host():
    assert refusal(admit, LOCAL, asked()) == FOREIGN_HOST
    assert refusal(admit, LOCAL, asked(HERE, HERE)) == FOREIGN_HOST
    assert refusal(admit, LOCAL, asked(HERE, (b"host", b"evil.test"))) == FOREIGN_HOST


@pytest.mark.parametrize(
    ("bound", "listed", "value", "fits"),
    [
        ("127.0.0.1", ["Metrics.Internal"], "metrics.internal:9000", True),
        ("127.0.0.1", ["metrics.internal:9000"], "metrics.internal:9000", True),
        ("127.0.0.1", ["metrics.internal:9000"], "metrics.internal:9001", False),
        ("127.0.0.1", ["metrics.internal"], "a.metrics.internal", False),
        ("127.0.0.1", ["[fd00::1]"], "[fd00::1]:8401", True),
        ("127.0.0.1", ["[fd00:0::1]:8401"], "[fd00::1]:8401", True),
        ("127.0.0.1", ["[fd00::1]:8401"], "[FD00:0::1]:8401", True),
        ("127.0.0.1", ["[fd00::1]:8401"], "[fd00::1]:8402", False),
        ("127.0.0.1", ["192.0.2.7:8401"], "192.0.2.7:8401", True),
        ("127.0.0.1", ["192.0.2.7:8401"], "192.0.2.7:8402", False),
        ("192.0.2.7", [], "192.0.2.7:8401", True),
        ("192.0.2.7", [], "192.0.2.8:8401", False),
        ("192.0.2.7", [], "localhost:8401", True),
        ("Box.Internal", [], "box.internal:8401", True),
        ("fd00::1", [], "[fd00:0::1]:8401", True),
        ("0.0.0.0", [], "192.0.2.7:8401", True),
        ("::", [], "[fd00::1]:8401", True),
        ("0.0.0.0", [], "evil.test:8401", False),
        ("", [], "192.0.2.7", True),
    ],
)
def test_hosts_of_other_bindings(bound, listed, value, fits):
    port = rules_for(bound, hosts=listed)
    fields = ((b"Host", value.encode()), (b"Authorization", b"Bearer " + TOKEN))
    assert refusal(admit, port, asked(*fields)) == (None if fits else FOREIGN_HOST)


@pytest.mark.parametrize(
    ("listed", "value", "fits"),
    [
        ("fd00::1", "[fd00::1]:8401", True),
        ("fd00::1", "[fd00::1]", True),
        ("FD00:0:0::1", "[fd00::1]:8401", True),
        ("fd00::1", "[fd00::2]", False),
        ("fd00::1:8401", "[fd00::1]:8401", False),
    ],
)
def test_addresses_may_be_listed_without_brackets(listed, value, fits):
    """Where the configuration lets them."""
    config = load({}, environment={}).config
    port = rules(replace(config, admin=replace(config.admin, hosts=[listed])), ())
    assert refusal(admit, port, asked((b"Host", value.encode()))) == (None if fits else FOREIGN_HOST)


@pytest.mark.parametrize(
    ("host", "origin", "fits"),
    [
        ("localhost:8401", "http://localhost:8401", True),
        ("localhost:8401", "https://localhost:8401", False),
        ("LOCALHOST:8401", "http://localhost:8401", True),
        ("localhost", "http://localhost", True),
        ("localhost:8401", "http://localhost", False),
        ("localhost:8401", "http://localhost:3000", False),
        ("localhost:8401", "http://127.0.0.1:8401", False),
        ("localhost:8401", "http://evil.test", False),
        ("localhost:8401", "http://localhost:8401.evil.test", False),
        ("localhost:8401", "http://localhost:8401/", False),
        ("localhost:8401", "ftp://localhost:8401", False),
        ("localhost:8401", "chrome-extension://localhost:8401", False),
        ("localhost:8401", "null", False),
        ("localhost:8401", "", False),
    ],
)
def test_origins(host, origin, fits):
    for method in ("GET", "HEAD", "OPTIONS", "DELETE"):
        fields = ((b"Host", host.encode()), (b"Origin", origin.encode()))
        assert refusal(admit, LOCAL, asked(*fields, method=method)) == (None if fits else FOREIGN_ORIGIN)


@pytest.mark.parametrize(
    ("host", "origin", "fits"),
    [
        ("metrics.internal", "https://metrics.internal", True),
        ("metrics.internal", "http://metrics.internal", True),
        ("metrics.internal:8443", "https://metrics.internal:8443", True),
        ("metrics.internal:8443", "https://metrics.internal", False),
        ("localhost:8401", "https://localhost:8401", False),
        ("127.0.0.1:8401", "https://127.0.0.1:8401", False),
    ],
)
def test_tls_is_in_front_of_names_that_are_listed_only(host, origin, fits):
    """This port speaks none: elsewhere it is another server's page, behind a port that says the same."""
    fields = ((b"Host", host.encode()), (b"Origin", origin.encode()))
    port = rules_for(hosts=["metrics.internal"])
    assert refusal(admit, port, asked(*fields)) == (None if fits else FOREIGN_ORIGIN)


def test_at_most_one_origin():
    ours = (b"Origin", b"http://localhost:8401")
    assert refusal(admit, LOCAL, asked(HERE, ours, ours)) == FOREIGN_ORIGIN


LINK = {"mode": "navigate", "dest": "document"}


@pytest.mark.parametrize(
    ("site", "more", "method", "target", "fits"),
    [
        ("same-origin", {}, "GET", b"/stats", True),
        ("same-origin", {}, "DELETE", b"/cache?all=1", True),
        ("none", {}, "GET", b"/stats", True),
        ("cross-site", LINK, "GET", b"/", True),
        ("same-site", LINK, "GET", b"/?window=1m", True),
        ("cross-site", LINK, "HEAD", b"/", True),
        ("cross-site", {}, "GET", b"/stats", False),
        ("same-site", {}, "GET", b"/events", False),
        ("cross-site", LINK, "GET", b"/stats", False),
        ("cross-site", LINK, "POST", b"/", False),
        ("cross-site", {"mode": "no-cors", "dest": "script"}, "GET", b"/dashboard.js", False),
        ("cross-site", {"mode": "no-cors", "dest": "image"}, "GET", b"/", False),
        ("cross-site", {"mode": "navigate", "dest": "iframe"}, "GET", b"/", False),
        ("cross-site", {"mode": "cors", "dest": "empty"}, "GET", b"/", False),
        ("cross-site", {}, "GET", b"/", False),
        ("", {}, "GET", b"/stats", False),
        ("none, cross-site", {}, "GET", b"/stats", False),
    ],
)
def test_sites(site, more, method, target, fits):
    fields = [(b"Sec-Fetch-Site", site.encode())]
    fields += [(b"Sec-Fetch-" + name.encode(), value.encode()) for name, value in more.items()]
    got = refusal(admit, LOCAL, asked(HERE, *fields, method=method, target=target))
    assert got == (None if fits else FOREIGN_SITE)


def test_a_field_that_is_there_twice_is_no_link():
    link = [(b"Sec-Fetch-Mode", b"navigate"), (b"Sec-Fetch-Dest", b"document")]
    for twice in ((b"Sec-Fetch-Site", b"cross-site"), *link):
        fields = [HERE, (b"Sec-Fetch-Site", b"cross-site"), *link, twice]
        assert refusal(admit, LOCAL, asked(*fields, target=b"/")) == FOREIGN_SITE


def bearer(token, scheme=b"Bearer"):
    return (b"Authorization", scheme + b" " + token)


def basic(token, user=b"any"):
    return bearer(b64encode(user + b":" + token), b"Basic")


GOOD = [bearer(TOKEN), bearer(TOKEN, b"bearer"), bearer(b" " + TOKEN)]
BASIC = [basic(TOKEN), basic(TOKEN, b""), (b"authorization", b"basic " + b64encode(b"u:" + TOKEN))]
BAD = [
    [],
    [bearer(b"")],
    [bearer(b"wrong")],
    [bearer(TOKEN + b"x")],
    [bearer(TOKEN[:-1])],
    [bearer(DIGEST.encode())],
    [bearer(TOKEN, b"Token")],
    [(b"Authorization", TOKEN)],
    [(b"Authorization", b"Bearer")],
    [basic(b"wrong")],
    [basic(b"")],
    [bearer(b64encode(TOKEN), b"Basic")],
    [bearer(b"not base64", b"Basic")],
    [bearer(TOKEN), bearer(TOKEN)],
    [bearer(b"wrong"), bearer(TOKEN)],
    [(b"X-Token", TOKEN)],
]


@pytest.mark.parametrize("field", GOOD)
def test_the_token_permits(field):
    assert refusal(permit, LOCAL, asked(HERE, field, method="DELETE")) is None
    assert refusal(admit, OPEN, asked(HERE, field)) is None


@pytest.mark.parametrize("field", BASIC)
def test_basic_is_for_looking_from_beyond_and_for_nothing_else(field):
    assert refusal(admit, OPEN, asked(HERE, field)) is None
    assert refusal(permit, OPEN, asked(HERE, field, method="DELETE")) == TOKEN_REQUIRED
    assert refusal(permit, LOCAL, asked(HERE, field, method="DELETE")) == TOKEN_REQUIRED


@pytest.mark.parametrize("fields", BAD)
def test_what_is_not_the_token(fields):
    assert refusal(permit, LOCAL, asked(HERE, *fields, method="DELETE")) == TOKEN_REQUIRED
    assert refusal(admit, OPEN, asked(HERE, *fields)) == TOKEN_REQUIRED
    assert refusal(admit, LOCAL, asked(HERE, *fields)) is None


@given(st.binary(max_size=40))
def test_no_other_token_permits(token):
    expected = None if token.strip(b" ") == TOKEN else TOKEN_REQUIRED
    assert refusal(permit, LOCAL, asked(HERE, bearer(token), method="DELETE")) == expected


def test_without_a_configured_token_nothing_changes():
    closed = rules_for(token=None)
    for field in (bearer(b""), bearer(b"anything"), basic(b"")):
        assert refusal(permit, closed, asked(HERE, field, method="DELETE")) == NO_TOKEN
    assert refusal(admit, closed, asked(HERE)) is None


def test_the_digest_of_nothing_lets_nobody_in():
    """The configuration refuses it, too; here it gets past that."""
    config = load({}, environment={}).config
    admin = replace(config.admin, token_sha256=hashlib.sha256(b"").hexdigest())
    empty = rules(replace(config, admin=admin), ())
    for field in (bearer(b""), (b"Authorization", b"Bearer"), basic(b""), (b"X", b"")):
        assert refusal(permit, empty, asked(HERE, field, method="DELETE")) == TOKEN_REQUIRED


def test_digests_may_be_in_capitals():
    assert (
        refusal(permit, rules_for(token=DIGEST.upper()), asked(HERE, bearer(TOKEN), method="DELETE")) is None
    )


@pytest.mark.parametrize(
    "target",
    [b"/", b"/stats", b"/readyz", b"/metrics", b"/dashboard.js", b"/healthz/", b"//healthz", b"/nowhere"],
)
def test_from_beyond_loopback_all_but_health_takes_the_token(target):
    assert refusal(admit, OPEN, asked(HERE, target=target)) == TOKEN_REQUIRED
    assert refusal(admit, OPEN, asked(HERE, bearer(TOKEN), target=target)) is None


def test_health_is_for_everybody_who_knows_the_host():
    assert refusal(admit, OPEN, asked(HERE, target=b"/healthz")) is None
    assert refusal(admit, OPEN, asked(HERE, target=b"/healthz?x")) is None
    assert refusal(admit, OPEN, asked((b"Host", b"evil.test"), target=b"/healthz")) == FOREIGN_HOST


def test_what_counts_is_where_it_listens_in_fact():
    """A name that looks harmless, and was resolved to another machine's side of this one."""
    assert not rules_for("localhost", addresses=["127.0.0.1", "::1"]).beyond
    assert rules_for("localhost", addresses=["127.0.0.1", "192.0.2.7"]).beyond
    unsafe = rules_for("localhost", token=None, addresses=["192.0.2.7"])
    assert refusal(admit, unsafe, asked(HERE)) == NO_TOKEN


def challenge(decide, *arguments):
    with pytest.raises(ProblemError) as raised:
        decide(*arguments)
    return dict(raised.value.answer.more)[b"WWW-Authenticate"]


def test_only_a_person_who_opens_the_page_is_asked_for_a_password():
    navigates, fetches = (b"Sec-Fetch-Mode", b"navigate"), (b"Sec-Fetch-Mode", b"cors")
    assert challenge(admit, OPEN, asked(HERE, target=b"/")).startswith(b'Basic realm="slipstream admin"')
    assert challenge(admit, OPEN, asked(HERE, navigates, target=b"/")).startswith(b"Basic ")
    assert challenge(admit, OPEN, asked(HERE, fetches, target=b"/")) == b"Bearer"
    assert challenge(admit, OPEN, asked(HERE)) == b"Bearer"
    assert challenge(admit, OPEN, asked(HERE, method="DELETE", target=b"/")) == b"Bearer"
    assert challenge(permit, OPEN, asked(HERE, method="DELETE", target=b"/cache")) == b"Bearer"


def test_refusals_repeat_nothing_of_what_was_sent():
    for fields in (
        [(b"Host", b"planted")],
        [HERE, (b"Origin", b"planted")],
        [HERE, (b"Sec-Fetch-Site", b"planted")],
    ):
        with pytest.raises(ProblemError) as raised:
            admit(LOCAL, asked(*fields))
        assert b"planted" not in raised.value.answer.body
    with pytest.raises(ProblemError) as raised:
        permit(LOCAL, asked(HERE, bearer(b"planted"), method="DELETE"))
    assert b"planted" not in raised.value.answer.body and DIGEST.encode() not in raised.value.answer.body
