"""Which answer a path gets. Owns the table; a new dialect is one file and its lines here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from sidecar.scripted.answers import anthropic, gemini, generic, ollama, openai, responses
from sidecar.scripted.answers.base import Answer, Ask, Build, Refuse, plain
from sidecar.scripted.script import Script

Read = Callable[[Mapping[str, object], str, str], Ask]


class Route(NamedTuple):
    """`read` makes the `Ask` of body, path and query, `build` the answer, `refuse` an error in its shape."""

    build: Build
    read: Read
    refuse: Refuse
    json: bool = True
    """The body has to be a JSON object."""


def _missing(ask: Ask, _script: Script) -> Answer:
    return generic.refuse(404, "the scripted provider has nothing here", ask)


MISSING = Route(_missing, generic.ask, generic.refuse, json=False)
EARLY = Route(generic.early, generic.ask, generic.refuse, json=False)
EVENTS = Route(generic.events, generic.ask, generic.refuse, json=False)

# The first suffix that fits counts, so longer ones stand first.
POST = (
    ("/chat/completions", Route(openai.chat, openai.ask, openai.refuse)),
    ("/completions", Route(openai.completions, openai.ask, openai.refuse)),
    ("/responses", Route(responses.responses, openai.ask, openai.refuse)),
    ("/embeddings", Route(openai.embeddings, openai.ask, openai.refuse)),
    ("/v1/messages", Route(anthropic.messages, plain, anthropic.refuse)),
    (":generateContent", Route(gemini.generate, gemini.ask, gemini.refuse)),
    (":streamGenerateContent", Route(gemini.generate, gemini.ask, gemini.refuse)),
    ("/api/chat", Route(ollama.chat, ollama.ask, ollama.refuse)),
    ("/api/generate", Route(ollama.generate, ollama.ask, ollama.refuse)),
    ("/api/embed", Route(ollama.embed, ollama.ask, ollama.refuse)),
    ("/events", EVENTS),
)
GET = (
    ("/v1beta/models", Route(gemini.models, generic.ask, gemini.refuse, json=False)),
    ("/v1/models", Route(openai.models, generic.ask, openai.refuse, json=False)),
    ("/api/tags", Route(ollama.tags, generic.ask, ollama.refuse, json=False)),
    ("/api/version", Route(ollama.version, generic.ask, ollama.refuse, json=False)),
    ("/events", EVENTS),
)
ANY = (
    ("/bytes/", Route(generic.download, generic.ask, generic.refuse, json=False)),
    ("/status/", Route(generic.status, generic.ask, generic.refuse, json=False)),
    ("/headers", Route(generic.headers, generic.ask, generic.refuse, json=False)),
    ("/redirect", Route(generic.redirect, generic.ask, generic.refuse, json=False)),
)


def find(method: str, path: str) -> Route:
    for suffix, route in POST if method == "POST" else GET:
        if path.endswith(suffix):
            return route
    for prefix, route in ANY:
        if path.startswith(prefix):
            return route
    return MISSING


__all__ = ["EARLY", "Route", "find"]
