"""How near a question has to be for a client: as configured for its namespace, which it cannot leave."""

import hashlib

import pytest

from sidecar.cli.cache_warm import _Nobody
from sidecar.config import load
from sidecar.serving.asks import Asks
from sidecar.serving.inbound import Inbound
from sidecar.serving.intake import request_of
from sidecar.serving.routes import Routes
from sidecar.serving.shell import Body

BODY = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
STRICT, LOOSE = 0.99, 0.7


def inquiry(namespace, named, *, clients=True):
    table = {"name": "a", "token_sha256": hashlib.sha256(b"t").hexdigest()}
    tree = {
        "clients": [table | ({"namespace": namespace} if namespace else {})] if clients else [],
        "cache": {"mode": "semantic"},
        "semantic": {"threshold": 0.9, "namespaces": {"strict": STRICT, "loose": LOOSE}},
    }
    config = load({"server.upstream": "http://up.test"}, {}, tree).config
    inbound = Inbound(config, b"s" * 32)
    upstreams = inbound.upstreams(Routes(config), lambda *_: None)
    fields = [(b"Host", b"h"), (b"Content-Type", b"application/json"), (b"Authorization", b"Bearer t")]
    fields += [(b"Slipstream-Namespace", named)] if named else []
    request = request_of("POST", b"/v1/chat/completions", tuple(fields))
    client, request = inbound.clients.identify(request)
    asks = Asks(config, upstreams, b"s" * 32, lambda _reason: None)
    asked = asks.asked(request, asks.route(request, request.path), Body(BODY, None, 0.0))
    ask = asks.ask(_Nobody(), asked, upstreams.caller(request, None, client))
    assert ask.keep is not None
    return ask.keep.inquiry


@pytest.mark.parametrize(
    ("namespace", "named", "threshold", "label"),
    [
        (None, None, 0.9, None),
        (None, b"loose", LOOSE, "loose"),
        ("strict", None, STRICT, "strict"),
        ("strict", b"loose", STRICT, "strict/loose"),
        ("other", b"loose", 0.9, "other/loose"),
    ],
)
def test_the_clients_namespace_decides(namespace, named, threshold, label):
    found = inquiry(namespace, named)
    assert found.threshold == threshold
    assert found.place.namespace == label


def test_without_clients_it_is_the_requests():
    found = inquiry(None, b"loose", clients=False)
    assert (found.threshold, found.place.namespace) == (LOOSE, "loose")
