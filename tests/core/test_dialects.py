"""sidecar.core.dialects: recognition, and what every dialect owes: keepalives, ids, error shapes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.dialects import DIALECTS, OTHER_SSE, Facts, recognise
from sidecar.core.errors import KINDS, sentence, status_of
from sidecar.core.types import Fault
from tests.core.oracle import typed

PATHS = {
    "openai.chat": [
        "/v1/chat/completions",
        "/chat/completions",
        "/openai/deployments/gpt-4o/chat/completions",
        "/api/v1/chat/completions",
        "/v1beta/openai/chat/completions",
    ],
    "openai.completions": ["/v1/completions", "/openai/deployments/d/completions"],
    "openai.responses": ["/v1/responses", "/openai/v1/responses"],
    "openai.embeddings": ["/v1/embeddings", "/openai/deployments/d/embeddings"],
    "anthropic.messages": ["/v1/messages", "/anthropic/v1/messages"],
    "gemini.generate_content": [
        "/v1beta/models/gemini-2.5-pro:generateContent",
        "/v1/models/gemini-2.5-pro:streamGenerateContent",
        "/v1/projects/p/locations/l/publishers/google/models/g:generateContent",
    ],
    "ollama.chat": ["/api/chat", "/ollama/api/chat"],
    "ollama.generate": ["/api/generate"],
    "ollama.embed": ["/api/embed"],
    None: [
        "/",
        "",
        "/v1/models",
        "/v1/messages/count_tokens",
        "/v1/messages/batches",
        "/messages",
        "/v1/responses/resp_1",
        "/v1/responses/resp_1/cancel",
        "/v1/chat/completions/chatcmpl_1",
        "/v1/chat/completions/",
        "/v1/chat/COMPLETIONS",
        "/v1beta/models/g:countTokens",
        "/v1beta/models/g:embedContent",
        "/api/tags",
        "/api/chats",
        "/v1/audio/speech",
        "/v1/batches",
    ],
}
NAMED = [(path, name) for name, paths in PATHS.items() for path in paths]
PIECES = st.sampled_from(
    sorted({piece for path, _ in NAMED for piece in path.split("/") if piece} | {":generateContent"})
)


@pytest.mark.parametrize(("path", "name"), NAMED)
def test_recognition(path, name):
    found = recognise("POST", path)
    assert (found and found.name) == name
    assert all(recognise(method, path) is None for method in ("GET", "PUT", "DELETE", "post", "HEAD"))


@given(st.lists(PIECES, max_size=5))
def test_no_path_is_claimed_by_two(pieces):
    path = "/" + "/".join(pieces)
    assert sum(dialect.matches(path) for dialect in DIALECTS) <= 1


def test_every_dialect_is_registered_once():
    assert {dialect.name for dialect in DIALECTS} == {*PATHS, "sse"} - {None}
    assert len(DIALECTS) == len({dialect.name for dialect in DIALECTS})


# GenAI semantic conventions of OpenTelemetry: gen_ai.provider.name and gen_ai.operation.name.
TELEMETRY = {
    "openai.chat": ("openai", "chat"),
    "openai.completions": ("openai", "text_completion"),
    "openai.responses": ("openai", "chat"),
    "openai.embeddings": ("openai", "embeddings"),
    "anthropic.messages": ("anthropic", "chat"),
    "gemini.generate_content": ("gcp.gemini", "generate_content"),
    "ollama.chat": ("ollama", "chat"),
    "ollama.generate": ("ollama", "text_completion"),
    "ollama.embed": ("ollama", "embeddings"),
    "sse": ("", ""),
}
# What clients of the format survive at an event boundary, and whether they survive `id:`.
INSERTS = {
    "openai.chat": (b": keepalive\n", True),
    "openai.completions": (b": keepalive\n", True),
    "openai.responses": (b": keepalive\n", True),
    "anthropic.messages": (b'event: ping\ndata: {"type": "ping"}\n\n', True),
    "gemini.generate_content": (b"\n", False),
    "ollama.chat": (b" ", False),
    "ollama.generate": (b" ", False),
    "sse": (b": keepalive\n", True),
}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_telemetry_and_inserts(dialect):
    assert (dialect.provider, dialect.operation) == TELEMETRY[dialect.name]
    if dialect.framing is not None:
        assert (dialect.keepalive, dialect.ids) == INSERTS[dialect.name]


def openai_error(fault, status):
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = "rate_limit_error" if status == 429 else kind
    return {"error": {"message": sentence(fault), "type": kind, "param": None, "code": fault.kind}}


def anthropic_error(fault, status):
    kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": sentence(fault)}}


def gemini_error(fault, status):
    names = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"}
    names |= {401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 429: "RESOURCE_EXHAUSTED"}
    name = names.get(status, "UNAVAILABLE" if status >= 500 else "FAILED_PRECONDITION")
    return {"error": {"code": status, "message": sentence(fault), "status": name}}


def ollama_error(fault, _status):
    return {"error": sentence(fault)}


# The shapes the official SDKs make their exceptions of.
BODIES = {
    "openai": openai_error,
    "anthropic": anthropic_error,
    "gcp.gemini": gemini_error,
    "ollama": ollama_error,
}
FAULTS = [Fault(kind, 'because of "x"\nand y') for kind in KINDS]
SPEAKING = [dialect for dialect in DIALECTS if dialect is not OTHER_SSE]


@pytest.mark.parametrize("dialect", SPEAKING, ids=lambda dialect: dialect.name)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.kind)
def test_error_bodies(dialect, fault):
    status = status_of(fault)
    assert json.loads(dialect.error_body(fault, status)) == BODIES[dialect.provider](fault, status)


def test_other_streams_get_problem_documents():
    assert json.loads(OTHER_SSE.error_body(FAULTS[0], 400))["detail"] == FAULTS[0].detail


def frame_of(dialect, **more):
    fault = Fault("upstream_closed", "in the middle")
    frame = dialect.error_frame(fault, 502, **more)
    if dialect.provider == "ollama":
        assert frame.count(b"\n") == 1
        assert frame.endswith(b"\n")
        return None, json.loads(frame), json.loads(dialect.error_body(fault, 502))
    ((event, data),) = typed(frame)
    assert frame.endswith(b"\n\n")
    return event, json.loads(data), json.loads(dialect.error_body(fault, 502))


# openai-python and -node raise for `error` in the data of any event, and for `event: error`; the ones for
# Responses want `error` nested, Anthropic's raise for `event: error` only, Google's look for `error`.
EVENTS = {"openai.responses": "error", "anthropic.messages": "error", "sse": "error"}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_error_frames(dialect):
    event, data, body = frame_of(dialect)
    assert event == (None if dialect.provider == "ollama" else EVENTS.get(dialect.name, "message"))
    assert data == ({"type": "error", **body} if dialect.name == "openai.responses" else body)


@pytest.mark.parametrize("dialect", SPEAKING, ids=lambda dialect: dialect.name)
def test_error_frames_are_read_as_errors_by_the_dialect_itself(dialect):
    _, data, _ = frame_of(dialect)
    facts = Facts()
    kind = dialect.read(json.dumps(data).encode(), facts)
    if dialect.framing is not None:
        assert (kind, facts.error is not None) == (None, True)


GIVEN = {"error": {"message": "slow down", "type": "rate_limit"}}


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_the_upstreams_own_error_is_repeated(dialect):
    _, data, _ = frame_of(dialect, upstream=json.dumps(GIVEN).encode())
    assert data == ({"type": "error", **GIVEN} if dialect.name == "openai.responses" else GIVEN)


@pytest.mark.parametrize(
    ("upstream", "error"),
    [
        ({"message": "no"}, {"message": "no"}),
        ({"error": "no"}, "no"),
        ({"error": None}, {"error": None}),
        ([1], [1]),
    ],
)
def test_responses_nests_whatever_error_there_is(upstream, error):
    _, data, _ = frame_of(recognise("POST", "/v1/responses"), upstream=json.dumps(upstream).encode())
    assert data == {"type": "error", "error": error}
