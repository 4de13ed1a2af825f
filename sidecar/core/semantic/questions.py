"""What an English question asks for (a reason, a way, a time, a yes or no), and how it speaks of it."""

from collections.abc import Mapping, Sequence

from sidecar.core.semantic.vocabulary import closed

LABELS: Mapping[str, str] = {
    **dict.fromkeys(closed("did was were had"), "past"),
    **dict.fromkeys(closed("do does is are am has have can will"), "present"),
    **dict.fromkeys(closed("should ought"), "should"),
    **dict.fromkeys(closed("my mine our"), "my"),
    **dict.fromkeys(closed("your yours"), "your"),
    **dict.fromkeys(closed("his her their"), "their"),
}
"""What single words say of the whole: its tense, that it is about what should be, and whose matter it is."""
NEUTRAL = frozenset({"what", "degree", ""})
"""Kinds that go with every other one: "What do I need" may be how, why or whether."""

_AUXILIARY = closed(
    "is are am was were do does did have has had can could will would shall should may might must"
)
_ASKING: Mapping[str, str] = {
    **{word: word for word in closed("why how when where who whom what")},
    "whose": "who",
    "which": "what",
}
_LEADING = closed("""
    and but so or then also please hi hello hey in on at to for from by with of about until since well ok okay
    now actually basically seriously exactly
""")
"""May stand before the word that asks."""
_ANYBODY = closed("you anyone anybody someone somebody")
_TELLING = closed(
    "tell explain say know show describe guess remember share help suggest recommend advise teach"
)
_MEASURES = closed("much many time old far often tall big large high deep fast soon heavy wide late early")
_NOUNS: Mapping[str, str] = {
    **dict.fromkeys(closed("way ways method methods steps step procedure"), "how"),
    **dict.fromkeys(closed("reason reasons cause causes"), "why"),
}
"""What is asked for when "what" or "which" is followed by these."""
_NEXT: Mapping[str, str] = {
    **dict.fromkeys(closed("time date year day month"), "when"),
    **dict.fromkeys(closed("place places city country"), "where"),
    **dict.fromkeys(closed("person people"), "who"),
}
"""The same, where they follow at once."""
_NEAR = 6
"""Words after the one that asks among which one of the former is looked for."""


def kind(words: Sequence[str], clauses: Sequence[int]) -> str:
    """What a sentence asks for: why, how, when, where, who, whom, `count` (how many), `whether`, `able`
    (whether one can), `degree` (how good), or what, which may be anything. Empty where it asks nothing.

    `words`: in lower case, without contractions. `clauses`: where its parts begin.
    """
    for start in clauses:
        at = start
        while at < len(words) and words[at] in _LEADING:
            at += 1
        if at < len(words) and (found := _begun(words, at)):
            return found
    for at in range(1, len(words) - 1):
        if words[at] in _ASKING and words[at + 1] in _AUXILIARY:
            return _asked(words, at)
    return ""


def _begun(words: Sequence[str], at: int) -> str:
    """By a part that begins there."""
    word, rest = words[at], words[at + 1 : at + 1 + _NEAR]
    if word in _ASKING:
        # "When I was a child, ..." and "Where there is ..." ask nothing.
        told = word in {"when", "where"} and rest and rest[0] not in _AUXILIARY
        return "" if told else _asked(words, at)
    if word not in _AUXILIARY:
        return ""
    if rest and rest[0] in _ANYBODY and not _TELLING.isdisjoint(rest[1:3]):
        # "Can you tell me how ...": it is "how" that is asked.
        inner = next((place for place in range(at + 1, len(words)) if words[place] in _ASKING), None)
        return "" if inner is None else _asked(words, inner)
    if word in {"can", "could"} or "possible" in rest:
        return "able"
    if rest and rest[0] == "there" and not {"way", "ways"}.isdisjoint(rest):
        return "how"
    return "whether"


def _asked(words: Sequence[str], at: int) -> str:
    """By the word that asks, and those behind it."""
    found, rest = _ASKING[words[at]], words[at + 1 : at + 1 + _NEAR]
    if not rest:
        return found
    if found == "what":
        return _NEXT.get(rest[0]) or next((_NOUNS[word] for word in rest if word in _NOUNS), found)
    if found == "who" and rest[0] in {"do", "does", "did"}:
        return "whom"
    if found == "how":
        if rest[0] in _MEASURES:
            return "count"
        if rest[0] == "come":
            return "why"
        if rest[0] not in _AUXILIARY and rest[1:2] and rest[1] in _AUXILIARY:
            return "degree"
    return found
