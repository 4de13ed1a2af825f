"""core.semantic.answers and decision: what two answers say, and whether one of them may be used."""

import math
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sidecar.core.entry import Known
from sidecar.core.semantic.answers import Said, difference, said
from sidecar.core.semantic.decision import NOTHING, Candidate, verdict
from sidecar.scripted import Script
from tests.core.test_folding import FORMS, IDS, PATHS, made

TOOLS = Script(tool=True, tokens=4)
TEXT = Script(text="Press  the\n red button.", reasoning=2)


def known(name: str, *, stream: bool, query: str = "") -> Known:
    path = PATHS[name].replace(":g", ":streamG") if stream else PATHS[name]
    return Known(200, "OK", (), 0.0, 60.0, name, path, query, stream)


def spoken(name: str, script: Script, *, stream: bool, query: str = "") -> Said | None:
    return said(known(name, stream=stream, query=query), made(name, script, stream=stream, query=query))


@pytest.mark.parametrize(("name", "query"), FORMS, ids=IDS)
def test_the_words_of_an_answer(name: str, query: str) -> None:
    for stream in (False, True):
        assert spoken(name, TEXT, stream=stream, query=query) == Said("Press the red button.", "")
        other = spoken(name, Script(text="Press the green button."), stream=stream, query=query)
        assert other == Said("Press the green button.", "")


@pytest.mark.parametrize(("name", "query"), FORMS, ids=IDS)
def test_tool_calls_are_part_of_what_is_said(name: str, query: str) -> None:
    if name in ("openai.completions", "ollama.generate"):
        return  # they have none
    whole = spoken(name, TOOLS, stream=False, query=query)
    assert whole is not None
    assert whole.calls
    assert whole == spoken(name, TOOLS, stream=True, query=query)
    assert difference(whole, Said(whole.text, "")) == "tools"


@pytest.mark.parametrize("name", PATHS)
@given(value=st.recursive(st.none() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["choices", "message", "content", "output", "type", "text",
                                          "candidates", "parts", "response"]), inner), max_leaves=12))  # fmt: skip
def test_surprising_answers_say_nothing(name: str, value: Any) -> None:
    for body in (orjson.dumps(value), orjson.dumps({"choices": value, "content": value, "output": value})):
        found = said(known(name, stream=False), body)
        assert found is None or isinstance(found.text, str)


def test_what_is_no_json_or_no_model_call_says_nothing() -> None:
    assert said(known("openai.chat", stream=False), b"{") is None
    assert said(Known(200, "OK", (), 0.0, 60.0, "", "/v1/models"), b"{}") is None
    assert spoken("openai.chat", Script(text=""), stream=False) is None


DIFFERENT = {
    "negation": ("Yes, you can take ibuprofen with it.", "No, you cannot take ibuprofen with it."),
    "numbers": ("It has 5.3 million inhabitants.", "It has 5.6 million inhabitants."),
    "dates": ("The shop opens on Monday.", "The shop opens on Tuesday."),
    "names": ("The capital is Paris.", "The capital is London."),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_short_answers_that_differ_in_what_matters_do_not_say_the_same(one: str, other: str) -> None:
    assert difference(Said(one, ""), Said(other, "")) is not None
    assert difference(Said(one, ""), Said(one, "")) is None


def test_long_answers_always_differ_somewhere() -> None:
    one, other = (Said(f"There are {number} ways. " + "One of them is this. " * 30, "") for number in (3, 5))
    assert difference(one, other) is None


NUMBERS = st.floats(-1, 1) | st.just(math.nan)
CANDIDATES = st.lists(st.builds(Candidate, st.binary(max_size=2), NUMBERS, st.none() | st.just("numbers")))


@given(CANDIDATES, st.floats(0, 1))
def test_only_what_is_near_and_unguarded_may_be_used(found: list[Candidate], threshold: float) -> None:
    made = verdict(found, threshold)
    sound = [one for one in found if not math.isnan(one.similarity)]
    assert made.nearest == (sound[0] if sound else None)
    assert all(one.similarity >= threshold and one.guard is None for one in made.matches)
    assert len(made.matches) == sum(one.similarity >= threshold and one.guard is None for one in sound)


def test_nothing_found_is_nothing() -> None:
    assert verdict([], 0.5) == NOTHING
