"""Webhooks: who may be named, what the receiver gets, and what becomes of it when the receiver misbehaves."""

import asyncio
import base64
import hmac
import ipaddress
import socket
import time
from hashlib import sha256
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import yarl
from hypothesis import given, settings
from hypothesis import strategies as st

from sidecar import __version__
from sidecar.config import Config
from sidecar.core.errors import RefusedError
from sidecar.core.values import ConfigError
from sidecar.engine.source import Origin
from sidecar.serving.webhooks import DELAYS, Webhooks, allowed, shown_key, signature, target
from sidecar.upstream.client import Client
from tests.faults.wire import GUARD

KEY = bytes(range(32))
JOB = "jAAAAAAAAAAAAAAAAAAAAAA-_AAAAAAAA"
BODY = b'{"id":"jAAA","status":"completed"}'
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Rig:
    """Webhooks on the real client, a clock that does not have to be waited for, and what was reported."""

    def __init__(self, client):
        self.client = client
        self.slept = []
        self.told = []

    def webhooks(self, **options):
        return Webhooks(self.client, KEY, **{"sleep": self.sleep, "timeout": GUARD} | options)

    async def deliver(self, where, *, attempts=0, **options):
        async with asyncio.timeout(GUARD):
            return await self.webhooks(**options).deliver(
                where, JOB, BODY, attempts=attempts, on_attempt=self.tell
            )

    async def sleep(self, seconds):
        self.slept.append(seconds)

    async def tell(self, number, delivered):
        self.told.append((number, delivered))

    def waited(self, *delays):
        """It waited these seconds, jitter aside, and nothing else."""
        return len(self.slept) == len(delays) and all(
            delay <= slept <= 1.2 * delay for slept, delay in zip(self.slept, delays, strict=True)
        )


@pytest.fixture
async def hook():
    config = Config()
    client = Client(config.timeouts, config.limits)
    yield Rig(client)
    client.close()


def at(server, path="/hook"):
    return target(server.url + path, allowed([server.url]))


def answers(provider, path, *whole):
    """Give one answer after the other, the last one again and again."""
    left = list(whole)
    provider.on(path, lambda connection, received: connection.send(left.pop(0) if len(left) > 1 else left[0]))


def head(status, *fields):
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"Content-Length: 0", b"", b""])


async def gone(provider):
    """The receiver sees no connection any more."""
    async with asyncio.timeout(GUARD):
        await provider.wait_until(lambda: not provider.connections)


# What is sent.


def test_signature_is_that_of_the_reference_vector():
    """The one that the Standard Webhooks libraries are tested with."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert shown_key(key) == "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


async def test_message_is_delivered_at_once_and_a_receiver_can_check_it(hook, provider):
    answers(provider, "/hook", OK)
    before = int(time.time())
    assert await hook.deliver(at(provider, "/hook?token=a%20b&c"))
    assert (hook.slept, hook.told) == ([], [(1, True)])
    (got,) = provider.requests
    assert (got.method, got.target, got.body) == ("POST", "/hook?token=a%20b&c", BODY)
    stamp = got.header("webhook-timestamp")
    assert before <= int(stamp) <= time.time()
    digest = hmac.new(KEY, JOB.encode() + b"." + stamp + b"." + BODY, sha256).digest()
    assert {name.lower(): value for name, value in got.headers} == {
        b"host": f"127.0.0.1:{provider.port}".encode(),
        b"user-agent": f"slipstream/{__version__}".encode(),
        b"content-type": b"application/json",
        b"content-length": str(len(BODY)).encode(),
        b"webhook-id": JOB.encode(),
        b"webhook-timestamp": stamp,
        b"webhook-signature": b"v1," + base64.b64encode(digest),
    }
    assert len(got.headers) == 7
    # And in the words of a library that receivers use.
    fields = {name.decode(): value.decode() for name, value in got.headers}
    with openai.OpenAI(api_key="none") as receiver:
        receiver.webhooks.verify_signature(got.body, fields, secret=shown_key(KEY))
        with pytest.raises(openai.InvalidWebhookSignatureError):
            receiver.webhooks.verify_signature(got.body + b" ", fields, secret=shown_key(KEY))


@pytest.mark.parametrize("status", [b"200 OK", b"201 Created", b"202 Accepted", b"204 No Content", b"299 X"])
async def test_any_2xx_is_delivery(hook, provider, status):
    answers(provider, "/hook", head(status))
    assert await hook.deliver(at(provider))
    assert len(provider.requests) == 1


async def test_answer_is_not_read_to_its_end(hook, provider):
    """A receiver that never ends its answer has taken the message all the same."""

    async def endless(connection, received):
        await connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbegun")
        await received.closed.wait()

    provider.on("/hook", endless)
    assert await hook.deliver(at(provider))
    await gone(provider)


# Failed attempts.


async def test_failure_is_followed_by_another_attempt(hook, provider):
    """The same id and body, a timestamp and a signature of its own."""
    answers(provider, "/hook", head(b"500 Oops"), OK)
    assert await hook.deliver(at(provider))
    assert hook.waited(5)
    assert hook.told == [(1, False), (2, True)]
    assert [got.header("webhook-id") for got in provider.requests] == [JOB.encode()] * 2
    for got in provider.requests:
        made = signature(KEY, JOB, int(got.header("webhook-timestamp")), got.body)
        assert (got.body, got.header("webhook-signature")) == (BODY, made)


@pytest.mark.parametrize(
    "answer",
    [
        head(b"400 Bad"),
        head(b"404 Not Found"),
        head(b"429 Slow"),
        head(b"503 Busy"),
        b"no HTTP at all\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    ],
)
async def test_delays_run_out(hook, provider, answer):
    answers(provider, "/hook", answer)
    assert not await hook.deliver(at(provider))
    assert hook.waited(*DELAYS[1:])
    assert hook.told == [(number, False) for number in range(1, len(DELAYS) + 1)]
    assert len(provider.requests) == len(DELAYS)


async def test_jitter_differs(hook, provider):
    answers(provider, "/hook", head(b"500 Oops"))
    assert not await hook.deliver(at(provider), delays=[100] * 20)
    assert hook.waited(*[100] * 20)
    assert len(set(hook.slept)) > 1


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_connection_that_is_lost_is_a_failed_attempt(hook, provider, how):
    async def lose(connection, received):
        getattr(connection, how)()

    provider.on("/hook", lose)
    assert not await hook.deliver(at(provider), delays=(0, 5))
    assert hook.told == [(1, False), (2, False)]


async def test_receiver_that_does_not_listen_is_a_failed_attempt(hook):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        assert not await hook.deliver(target(url, allowed([url])), delays=(0, 5, 30))
    assert hook.told == [(1, False), (2, False), (3, False)]
    assert hook.waited(5, 30)


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"307 Temporary", b"308 Permanent"])
async def test_redirect_is_not_followed(hook, provider, status):
    answers(provider, "/hook", head(status, b"Location: " + provider.url.encode() + b"/elsewhere"))
    assert not await hook.deliver(at(provider), delays=(0, 5))
    assert [got.path for got in provider.requests] == ["/hook", "/hook"]


async def test_410_ends_it(hook, provider):
    answers(provider, "/hook", head(b"500 Oops"), head(b"410 Gone"), OK)
    assert not await hook.deliver(at(provider))
    assert hook.told == [(1, False), (2, False)]
    assert hook.waited(5)
    assert len(provider.requests) == 2


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nSlow:"])
async def test_receiver_that_goes_silent_is_given_up_on(hook, provider, said):
    async def silent(connection, received):
        if said:
            await connection.send(said)
        await received.closed.wait()

    provider.on("/hook", silent)
    assert not await hook.deliver(at(provider), delays=(0, 5), timeout=0.05)
    assert hook.told == [(1, False), (2, False)]
    await gone(provider)


async def test_dripping_head_gets_no_more_time(hook, provider):
    """The time is for the attempt in all, not for each byte."""

    async def drip(connection, received):
        await connection.send(b"HTTP/1.1 200 OK\r\nSlow: ")
        while not received.closed.is_set():
            await connection.send(b".")
            await asyncio.sleep(0.005)

    provider.on("/hook", drip)
    assert not await hook.deliver(at(provider), delays=(0,), timeout=0.05)
    await gone(provider)


# Going on, and stopping.


async def test_attempts_go_on_where_they_were(hook, provider):
    answers(provider, "/hook", head(b"500 Oops"), OK)
    assert await hook.deliver(at(provider), attempts=3)
    assert hook.told == [(4, False), (5, True)]
    assert hook.waited(*DELAYS[3:5])


@pytest.mark.parametrize("attempts", [len(DELAYS), len(DELAYS) + 1])
async def test_nothing_is_left_to_try(hook, provider, attempts):
    assert not await hook.deliver(at(provider), attempts=attempts)
    assert (hook.told, hook.slept, provider.accepted) == ([], [], 0)


async def test_cancelling_an_attempt_leaves_no_connection(hook, provider):
    async def silent(connection, received):
        await received.closed.wait()

    provider.on("/hook", silent)
    task = asyncio.create_task(hook.deliver(at(provider)))
    await provider.wait_for(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hook.told == []
    await gone(provider)


async def test_cancelling_between_attempts_ends_it(hook, provider):
    sleeping = asyncio.Event()

    async def sleep(seconds):
        sleeping.set()
        await asyncio.Event().wait()

    answers(provider, "/hook", head(b"500 Oops", b"Connection: close"))
    task = asyncio.create_task(hook.deliver(at(provider), sleep=sleep))
    await sleeping.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert hook.told == [(1, False)]
    await gone(provider)


# Which origins there are.


@pytest.mark.parametrize(
    ("entry", "origin"),
    [
        ("hooks.example.com", ("https", "hooks.example.com", 443)),
        ("Hooks.Example.COM", ("https", "hooks.example.com", 443)),
        ("hooks.example.com:8443", ("https", "hooks.example.com", 8443)),
        ("hooks.example.com:80", ("https", "hooks.example.com", 80)),
        ("https://hooks.example.com", ("https", "hooks.example.com", 443)),
        ("HTTPS://hooks.example.com:443", ("https", "hooks.example.com", 443)),
        ("http://hooks.example.com", ("http", "hooks.example.com", 80)),
        ("http://10.0.0.5:9000", ("http", "10.0.0.5", 9000)),
        ("10.0.0.5:9000", ("https", "10.0.0.5", 9000)),
        ("xn--bcher-kva.example", ("https", "xn--bcher-kva.example", 443)),
        ("hook_receiver:9000", ("https", "hook_receiver", 9000)),
        ("127.0.0.1", ("http", "127.0.0.1", 80)),
        ("127.0.0.1:9000", ("http", "127.0.0.1", 9000)),
        ("localhost:9000", ("http", "localhost", 9000)),
        ("[::1]:9000", ("http", "::1", 9000)),
        ("[0:0:0:0:0:0:0:1]", ("http", "::1", 80)),
        ("https://localhost", ("https", "localhost", 443)),
        ("https://[::1]:9000", ("https", "::1", 9000)),
        ("[2001:DB8::0:1]", ("https", "2001:db8::1", 443)),
        ("localhost.example.com", ("https", "localhost.example.com", 443)),
        ("127.0.0.1.example.com", ("https", "127.0.0.1.example.com", 443)),
    ],
)
def test_entry_names_an_origin(entry, origin):
    assert allowed([entry]) == {Origin(*origin)}


def test_entries_add_up():
    assert allowed([]) == frozenset()
    assert len(allowed(["a.example", "https://a.example:443", "http://a.example"])) == 2


@pytest.mark.parametrize(
    "entry",
    [
        "",
        " ",
        "https://",
        "://hooks.example.com",
        "//hooks.example.com",
        "https:hooks.example.com",
        "ftp://hooks.example.com",
        "https://https://hooks.example.com",
        "hooks.example.com/",
        "https://hooks.example.com/path",
        "hooks.example.com?q",
        "hooks.example.com#f",
        "https://user:pass@hooks.example.com",
        "*.example.com",
        "hooks.example.com:",
        "hooks.example.com:0",
        "hooks.example.com:0443",
        "hooks.example.com:65536",
        "hooks.example.com:https",
        ":443",
        "hooks.example.com.",
        "hooks..example.com",
        "-hooks.example.com",
        "hooks%2eexample.com",
        "hooks.example.com\n",
        "hooks example.com",
        "hooks\\example.com",
        "b\u00fccher.example",
        "hoo\u212as.example.com",
        "hook\u017f.example.com",
        "127.1",
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "1.2.3.4.5",
        "999.1.1.1",
        "::1",
        "[::1",
        "[127.0.0.1]",
        "[fe80::1%25eth0]",
        "[v1.x]",
        "a" * 64 + ".example",
        ".".join(["a" * 60] * 5),
    ],
)
def test_bad_entry_is_named_with_its_remedy(entry):
    with pytest.raises(ConfigError) as caught:
        allowed(["good.example", entry])
    message = str(caught.value)
    assert message.startswith("jobs.webhooks[1]")
    assert "; expected an origin such as hooks.example.com" in message
    assert "\n" not in message
    # What may hold a credential, or is endless, is named by its number alone.
    hidden = not set("@?#").isdisjoint(entry) or len(entry) > 98
    assert (repr(entry) in message) is not hidden


# Which URLs may be called.

ORIGINS = allowed(
    ["hooks.example.com", "hooks.example.com:8443", "http://10.0.0.5:9000", "localhost:7", "[::1]:7"]
)


@pytest.mark.parametrize(
    ("url", "origin", "host", "path"),
    [
        ("https://hooks.example.com", ("https", "hooks.example.com", 443), b"hooks.example.com", b"/"),
        ("https://hooks.example.com:443/a", ("https", "hooks.example.com", 443), b"hooks.example.com", b"/a"),
        ("HTTPS://HOOKS.example.com/A", ("https", "hooks.example.com", 443), b"hooks.example.com", b"/A"),
        (
            "https://hooks.example.com?q=1",
            ("https", "hooks.example.com", 443),
            b"hooks.example.com",
            b"/?q=1",
        ),
        (
            "https://hooks.example.com:8443/a/../b//c;d?e=%40&f=/?:",
            ("https", "hooks.example.com", 8443),
            b"hooks.example.com:8443",
            b"/a/../b//c;d?e=%40&f=/?:",
        ),
        ("http://10.0.0.5:9000/x", ("http", "10.0.0.5", 9000), b"10.0.0.5:9000", b"/x"),
        ("http://localhost:7/", ("http", "localhost", 7), b"localhost:7", b"/"),
        ("http://[0:0::1]:7/", ("http", "::1", 7), b"[::1]:7", b"/"),
    ],
)
def test_url_of_an_allowed_origin(url, origin, host, path):
    found = target(url, ORIGINS)
    assert (found.origin, found.host, found.path) == (Origin(*origin), host, path)


LONG = "https://hooks.example.com/"


def test_longest_url():
    assert target(LONG + "a" * (2048 - len(LONG)), ORIGINS)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        (LONG + "a" * (2049 - len(LONG)), "longer than 2048"),
        ("", "begins with https://"),
        ("hooks.example.com/SECRET", "begins with https://"),
        ("ftp://hooks.example.com/SECRET", "begins with https://"),
        ("https:hooks.example.com/SECRET", "begins with https://"),
        ("https:/hooks.example.com/SECRET", "begins with https://"),
        ("https:\\\\hooks.example.com", "begins with https://"),
        ("//hooks.example.com", "begins with https://"),
        ("https:///hooks.example.com", "plain host name"),
        ("https://", "plain host name"),
        ("https://?SECRET", "plain host name"),
        ("https://:443/", "plain host name"),
        ("https://user@hooks.example.com/?SECRET", "user name or password"),
        ("https://user:SECRET@hooks.example.com/", "user name or password"),
        ("https://evil.example@hooks.example.com/", "user name or password"),
        ("https://hooks.example.com@evil.example/", "user name or password"),
        ("https://@hooks.example.com/", "user name or password"),
        ("https://hooks.example.com?@evil.example/", "percent-encoded"),
        ("https://hooks.example.com/@evil.example/", "percent-encoded"),
        ("https://hooks.example.com\\@evil.example/", "user name or password"),
        ("https://hooks.example.com\\.evil.example/", "percent-encoded"),
        ("https://hooks.example.com/\\evil.example/", "percent-encoded"),
        ("https://hooks.example.com/{SECRET}", "percent-encoded"),
        ("https://hooks.example.com/?SECRET=%zz", "percent-encoded"),
        ("https://hooks.example.com/?SECRET%", "percent-encoded"),
        ("https://hooks.example.com/?SECRET#fragment", "fragment"),
        ("https://hooks.example.com#@evil.example/", "fragment"),
        (" https://hooks.example.com/?SECRET", "spaces, control"),
        ("https://hooks.example.com/ HTTP/1.1", "spaces, control"),
        ("https://hooks.example.com/\r\nX: SECRET", "spaces, control"),
        ("https://hooks.example.com/\n", "spaces, control"),
        ("ht\ttps://hooks.example.com/", "spaces, control"),
        ("https://hooks.\texample.com/", "spaces, control"),
        ("https://hooks.example.com\x00.evil.example/", "spaces, control"),
        ("https://hooks.example.com\x7f/", "spaces, control"),
        ("https://hooks.example.com/\u00e9", "non-ASCII"),
        ("https://hook\u017f.example.com/", "non-ASCII"),
        ("http\u017f://hooks.example.com/", "non-ASCII"),
        ("https://hooks.example.com/hook\u017f", "non-ASCII"),
        ("https://hooks\u3002example.com/", "non-ASCII"),
        ("https://hooks.example.com/\ud800", "non-ASCII"),
        ("https://hooks%2eexample.com/", "plain host name"),
        ("https://hooks.example.com%00.evil.example/", "plain host name"),
        ("https://hooks.example.com:0/", "plain host name"),
        ("https://hooks.example.com:/", "plain host name"),
        ("https://hooks.example.com:00443/", "plain host name"),
        ("https://hooks.example.com:65979/", "at most a port"),
        ("https://hooks.example.com:443:443/", "plain host name"),
        ("https://hooks.example.com:+443/", "plain host name"),
        ("https://hooks.example.com./", "plain host name"),
        ("https://[hooks.example.com]/", "plain host name"),
        ("https://hooks.example.com[::1]/", "plain host name"),
        ("http://[::1%25lo]:7/", "plain host name"),
        ("http://[::1::]:7/", "looks like an IP address"),
        ("http://10.0.5:9000/", "looks like an IP address"),
        ("http://0x0a000005:9000/", "looks like an IP address"),
        ("http://167772165:9000/", "looks like an IP address"),
        ("https://evil.example/?SECRET", "https://evil.example is none of the origins"),
        ("https://hooks.example.com.evil.example/", "none of the origins"),
        ("https://evilhooks.example.com/", "none of the origins"),
        ("https://hooks.example.com:9443/?SECRET", "https://hooks.example.com:9443 is none of the origins"),
        ("http://hooks.example.com/", "http://hooks.example.com is none of the origins"),
        ("http://hooks.example.com:443/", "none of the origins"),
        ("https://10.0.0.5:9000/", "none of the origins"),
        ("https://localhost:7/", "none of the origins"),
        ("http://169.254.169.254/SECRET", "none of the origins"),
        ("http://[::ffff:10.0.0.5]:9000/", "none of the origins"),
    ],
)
def test_bad_url_is_refused_with_the_reason(url, why):
    with pytest.raises(RefusedError) as caught:
        target(url, ORIGINS)
    fault = caught.value.fault
    assert (fault.kind, caught.value.close) == ("bad_request", False)
    assert fault.detail.startswith("Slipstream-Webhook: ")
    assert why in fault.detail
    assert "SECRET" not in fault.detail
    assert fault.detail.isascii() and fault.detail.isprintable()


def test_nothing_is_allowed_unless_it_is_configured():
    with pytest.raises(RefusedError, match=r"jobs\.webhooks"):
        target("https://hooks.example.com/", allowed([]))


def seen_by(url):
    """Where the URL leads according to three parsers that are not ours."""
    for parsed in (httpx.URL(url), yarl.URL(url, encoded=True), urlsplit(url)):
        host = parsed.host if not isinstance(parsed, tuple) else parsed.hostname
        port = parsed.port or {"http": 80, "https": 443}[parsed.scheme]
        if ":" in host:
            host = str(ipaddress.ip_address(host))
        yield Origin(parsed.scheme, host.lower(), port)


HOSTS = ["hooks.example.com", "HOOKS.example.com", "10.0.0.5", "localhost", "[::1]", "[0::1]", "evil.example"]
PIECES = [
    *("https://", "HTTP://", "http:", "//", "/", "\\", "@", "#", "?", ":", ".", "%2e", "%40", "%", "[", "]"),
    *(
        "\t",
        "\n",
        " ",
        "\x00",
        "\u3002",
        "\u017f",
        ";",
        "&",
        "user",
        "0",
        "x",
        ":443",
        ":8443",
        ":9000",
        ":7",
    ),
    *HOSTS,
]
HARMLESS = [
    "/",
    "a",
    "?",
    ":",
    ".",
    "..",
    "%2e",
    "%40",
    ";",
    "&",
    "[",
    "]",
    "//",
    "https://evil.example",
    "~",
]
URLS = st.one_of(
    st.lists(st.sampled_from(PIECES)).map("".join),
    st.builds(
        "{}://{}{}{}{}".format,
        st.sampled_from(["https", "http", "HTTPS"]),
        st.one_of(
            st.sampled_from(HOSTS), st.text("aA0.-_:[]%~\\1xf9", max_size=9), st.from_regex("[a-f0-9.:]{1,9}")
        ),
        st.sampled_from(["", ":443", ":8443", ":9000", ":7", ":80", ":07"]),
        st.sampled_from(["", "/", "?", "/?"]),
        st.lists(st.sampled_from(HARMLESS)).map("".join),
    ),
    st.builds(
        "https://hooks.example.com{}{}{}".format,
        st.sampled_from(HARMLESS),
        st.one_of(st.sampled_from(PIECES), st.text(max_size=2)),
        st.sampled_from(PIECES),
    ),
)


class Everywhere(frozenset):
    """Every origin is allowed, so that what was read out of the URL shows."""

    def __contains__(self, origin):
        return True


@settings(deadline=None, database=None, derandomize=True, max_examples=1000)
@given(URLS)
def test_accepted_url_leads_to_an_allowed_origin_in_every_parsers_eyes(url):
    try:
        found = target(url, Everywhere())
    except RefusedError:
        with pytest.raises(RefusedError):
            target(url, ORIGINS)
        return
    assert set(seen_by(url)) == {found.origin}
    if found.origin in ORIGINS:
        assert target(url, ORIGINS) == found
    else:
        with pytest.raises(RefusedError, match="none of the origins"):
            target(url, ORIGINS)
    # On the wire it stays one line, and what was written is what is sent.
    assert found.path.startswith(b"/")
    assert all(0x21 <= byte <= 0x7E for byte in found.path + found.host)
    assert url.endswith(found.path.decode().removeprefix("/"))


@settings(deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from(["https://hooks.example.com", "https://hooks.example.com:8443", "http://[::1]:7"]),
    st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=50),
)
def test_url_that_is_percent_encoded_as_it_should_is_accepted(base, text):
    """No refusal without a reason: whatever is to be said in path and query can be said."""
    url = str(httpx.URL(base + "/hook", params={"token": text}))
    found = target(url, ORIGINS)
    assert httpx.URL(base + found.path.decode()).params["token"] == text
    assert found.host == base.partition("://")[2].encode()
