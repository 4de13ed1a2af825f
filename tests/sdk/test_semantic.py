"""What official SDKs make of an answer to the same question in other words: the same as of the first one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest

from sidecar.scripted import Script

from .calls import CALLS, run
from .cases import TOOL, Case, Variant
from .rig import Provider, Sidecar, at_once, run_node

# google-genai's own, when aiohttp is there.
pytestmark = pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")

ASKED = "What will the weather be like in Paris over the next 3 days?"
AGAIN = "What will the weather in Paris be like over the next 3 days?"
"""The same in other words; the real model says 0.99."""
MISSED = "What will the weather be like in Paris over the next 4 days?"
"""Nearly the same words, and another question; the real model says 0.97."""
STRICT = {"Slipstream-Similarity": "0.9999"}
HIT, MISS = "slipstream; hit; ttl=", "slipstream; fwd=miss; stored"

WHOLE, STREAM = Variant("semantic"), Variant("semantic-stream", stream=True)
TALKING = [name for name in CALLS if "embed" not in name and not name.endswith(".async")]
CASES = [
    Case(call, variant)
    for call in TALKING
    for variant in (
        WHOLE,
        STREAM,
        Variant("semantic-tool", {"tool": True}),
        Variant("semantic-stream-tool", {"tool": True}, stream=True),
        Variant("semantic-stream-reasoning", {"reasoning": 2}, stream=True),
    )
    if not variant.script or call not in ("openai.completions", "ollama.generate")
]
NODE = {
    "openai": ["openai.chat", "openai.completions", "openai.responses"],
    "anthropic": ["anthropic"],
}
NODE_CASES = [
    (sdk, Case(call, variant, "node."))
    for sdk, calls in NODE.items()
    for call in calls
    for variant in (WHOLE, STREAM)
]


class Changing:
    """A provider that says something else whenever it is told to, so that whose answer it is can be told."""

    def __init__(self, provider: Provider) -> None:
        self._scripted = provider.scripted
        self._number = 0

    @property
    def received(self) -> int:
        return self._scripted.received

    def turn(self) -> str:
        """What it says from now on; its usage and times are others, too."""
        self._number += 1
        text = f"answer number {self._number} of the provider"
        self._scripted.script = Script(
            text=text, prompt=100 + self._number, created=1_700_000_000 + self._number
        )
        return text


class Heard(NamedTuple):
    """What an app got, and what was said of the cache."""

    result: dict[str, Any]
    cache: str

    @property
    def text(self) -> str:
        return "".join(self.result["text"])


@pytest.fixture(scope="module")
def own() -> Iterator[Provider]:
    with Provider() as running:
        yield running


@pytest.fixture(scope="module")
def semantic(
    own: Provider, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Sidecar]:
    """It knows paraphrases. It is patient, because this is not about time."""
    home = tmp_path_factory.mktemp("semantic")
    data = home / "slipstream"
    data.mkdir(mode=0o700)
    (data / "model").symlink_to(model_folder / "model")  # is only read: it is ready
    running = Sidecar(own.url, home, "semantic", SLIPSTREAM_SEMANTIC__DEADLINE="30")
    try:
        running.wait(lambda: running.find(event="semantic_ready"))
        yield running
    finally:
        ended = running.stop()
    assert ended
    assert not running.find(event="fault")


@pytest.fixture(scope="module")
def provider(own: Provider) -> Changing:
    return Changing(own)


def lines(sidecar: Sidecar, model: str, number: int) -> list[dict[str, Any]]:
    """The latency lines for that model, once there are so many. What was stored is found by others then."""
    return sidecar.wait(
        lambda: found if len(found := sidecar.find(event="request", model=model)) >= number else []
    )


class Talk:
    """Calls of one case, one after the other."""

    def __init__(self, case: Case, sidecar: Sidecar, provider: Changing) -> None:
        self._case, self._sidecar, self._provider = case, sidecar, provider
        self._count = 0
        self.said = ""
        """What the provider would have said to the last call."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Of all calls."""
        return lines(self._sidecar, self._case.id, self._count)

    def ask(self, question: str, key: str = "sk-one", **headers: str) -> Heard:
        """One call; the provider has got it, or not, as `cache` says."""
        self.said, before, heard = self._provider.turn(), self._provider.received, []
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        if self._case.call.startswith("ollama"):
            extra["Authorization"] = f"Bearer {key}"
        result = run(
            self._case,
            self._sidecar.url,
            paced=False,
            extra=extra,
            question=question,
            key=key,
            heard=heard,
        )
        assert result["error"] is None
        (got,) = heard
        self._count += 1
        made = Heard(result, got["cache-status"])
        assert self._provider.received - before == made.cache.startswith(MISS)
        return made

    def first(self) -> Heard:
        """A call that went to the provider, and is stored."""
        made = self.ask(ASKED)
        self.own(made)
        assert self.lines[-1]["phases"]["store_ms"] is not None
        return made

    def own(self, made: Heard) -> None:
        """That is what the provider has just said."""
        assert made.cache == MISS
        if self._case.variant.tool:
            assert made.result["tools"] == [TOOL]
        else:
            assert made.text == self.said


@pytest.fixture
def talk(case: Case, semantic: Sidecar, provider: Changing) -> Talk:
    return Talk(case, semantic, provider)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_paraphrase_is_the_first_answer_and_a_near_miss_is_not(talk: Talk) -> None:
    """Every item the SDK gives is the same: text, thoughts, tool calls, usage, finish, ids and times."""
    first = talk.first()
    again = talk.ask(AGAIN)
    assert again.cache.startswith(HIT)
    assert "; detail=semantic:0.99" in again.cache
    assert again.result == first.result
    missed = talk.ask(MISSED)
    talk.own(missed)
    assert missed.result != first.result
    one, two, three = talk.lines
    assert two["cache_kind"] == "semantic"
    for name in ("input_tokens", "output_tokens", "response_model"):
        assert two[name] == one[name]
    assert three["similarity"] >= 0.92
    assert three["guard"] == "numbers"


SDKS = ["openai.chat", "anthropic", "gemini", "ollama.chat"]


@pytest.mark.parametrize("case", [Case(call, Variant("keys")) for call in SDKS], ids=lambda case: case.id)
def test_two_keys_never_share_and_an_app_may_be_stricter(talk: Talk) -> None:
    first = talk.first()
    other = talk.ask(AGAIN, "sk-two")
    talk.own(other)
    one, two = talk.lines
    assert one["tenant"] != two["tenant"]
    # Each has its own from then on.
    for key, question, answer in (("sk-one", AGAIN, first), ("sk-two", ASKED, other)):
        heard = talk.ask(question, key)
        assert "; detail=semantic:" in heard.cache
        assert heard.result == answer.result
    strict = talk.ask(AGAIN, Slipstream_Similarity="0.9999")
    talk.own(strict)
    assert talk.lines[-1]["phases"]["store_ms"] is not None
    # It is stored under its own words, beside the first one.
    for question, answer in ((ASKED, first), (AGAIN, strict)):
        heard = talk.ask(question)
        assert "; detail=exact" in heard.cache
        assert heard.result == answer.result


# The SDKs' own ways to headers.


def test_by_the_openai_sdk(semantic: Sidecar, provider: Changing) -> None:
    with openai.OpenAI(base_url=f"{semantic.url}/v1", api_key="sk-openai", max_retries=0) as client:
        create = client.chat.completions.with_raw_response.create
        for number, (question, extra, cache) in enumerate(
            [(ASKED, {}, MISS), (AGAIN, {}, HIT), (AGAIN, STRICT, MISS)], 1
        ):
            said, turn = provider.turn(), {"role": "user", "content": question}
            given = create(model="by-openai", messages=[turn], extra_headers=extra)  # type: ignore[list-item]
            assert given.headers["cache-status"].startswith(cache)
            assert (given.parse().choices[0].message.content == said) is (cache == MISS)
            lines(semantic, "by-openai", number)


def test_by_the_anthropic_sdk(semantic: Sidecar, provider: Changing) -> None:
    with anthropic.Anthropic(base_url=semantic.url, api_key="sk-anthropic", max_retries=0) as client:
        for number, (question, extra, cache) in enumerate(
            [(ASKED, {}, MISS), (AGAIN, {}, HIT), (AGAIN, STRICT, MISS)], 1
        ):
            said = provider.turn()
            with client.messages.stream(
                model="by-anthropic",
                messages=[{"role": "user", "content": question}],
                max_tokens=100,
                extra_headers=extra,
            ) as stream:
                assert (stream.get_final_text() == said) is (cache == MISS)
                assert stream.response.headers["cache-status"].startswith(cache)
            lines(semantic, "by-anthropic", number)


# JavaScript.


class Round(NamedTuple):
    """All cases asked at once."""

    said: str
    received: int
    results: dict[str, Any]


def ask_all(sidecar: Sidecar, provider: Changing, *rounds: dict[str, Any]) -> list[Round]:
    """All rounds at once, too."""
    said, before = provider.turn(), provider.received

    def ask(item: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        sdk, more = item
        cases = [case for name, case in NODE_CASES if name == sdk]
        return run_node(sdk, sidecar.url, cases, paced=False, **{"key": "sk-one", **more})

    work = [(sdk, more) for more in rounds for sdk in NODE]
    ran = at_once(ask, work)
    made = []
    for more in rounds:
        results: dict[str, Any] = {}
        for (_, asked), result in zip(work, ran, strict=True):
            if asked is more:
                results |= result
        made.append(Round(said, provider.received - before, results))
    return made


@pytest.fixture(scope="module")
def in_node(node: None, semantic: Sidecar, provider: Changing) -> list[Round]:
    """Asked; in other words; a near miss, with another key, and stricter, which are to come to nothing."""
    (first,) = ask_all(semantic, provider, {"question": ASKED})
    for _, case in NODE_CASES:
        assert lines(semantic, case.id, 1)[0]["phases"]["store_ms"] is not None
    (again,) = ask_all(semantic, provider, {"question": AGAIN})
    others = ask_all(
        semantic,
        provider,
        {"question": MISSED},
        {"question": AGAIN, "key": "sk-two"},
        {"question": AGAIN, "extra": STRICT},
    )
    return [first, again, *others]


@pytest.mark.parametrize("case", [case for _, case in NODE_CASES], ids=lambda case: case.id)
def test_node(case: Case, in_node: list[Round]) -> None:
    first, again, *others = [made.results[case.id] for made in in_node]
    assert first["error"] is None
    assert first.pop("cache") == MISS
    assert "".join(first["text"]) == in_node[0].said
    cache = again.pop("cache")
    assert cache.startswith(HIT)
    assert "; detail=semantic:0.99" in cache
    assert again == first
    for made, other in zip(in_node[2:], others, strict=True):
        assert other["error"] is None
        assert other["cache"] == MISS
        assert "".join(other["text"]) == made.said


def test_node_called_once_for_each(in_node: list[Round]) -> None:
    count = len(NODE_CASES)
    assert [made.received for made in in_node[:3]] == [count, 0, 3 * count]
