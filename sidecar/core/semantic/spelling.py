"""Words and links without what makes no difference: points, apostrophes, accents, schemes."""

import unicodedata
from collections.abc import Mapping

_WHOLE = {"wo": "will", "ca": "can", "sha": "shall", "ai": "is"}
"""What is left of a negation without its end, and what it was."""
_NEGATED = "dont doesnt didnt isnt arent wasnt werent couldnt wouldnt shouldnt havent hasnt hadnt"
_BARE: Mapping[str, str] = {"cant": "can", **{word: word[:-2] for word in _NEGATED.split()}}
"""Negations that have lost their apostrophe."""
_ENDS = frozenset({"s", "re", "ve", "ll", "d", "m", ""})
"""What may stand behind an apostrophe without belonging to the word."""
_INITIALS = 5
"""Letters of what is the same with points and without: "U.S.", "Ph.D", "M.Tech"."""


def bare(text: str) -> tuple[str, bool]:
    """An English word in lower case, and whether it ends in a "not"."""
    word = text.lower()
    if not text.isascii():
        # English does well without accents.
        parts = unicodedata.normalize("NFKD", word)
        word = "".join([sign for sign in parts if not unicodedata.combining(sign)])
    if word.isalpha():
        if word in _BARE:
            return _BARE[word], True
        plural = text[-1] == "s" and len(text) > 2 and text[:-1].isupper()
        return (word[:-1] if plural else word), False
    head, apostrophe, end = word.rpartition("'")
    if apostrophe:
        if end == "t" and head.endswith("n"):
            return _WHOLE.get(head[:-1], head[:-1]), True
        return (head if end in _ENDS else word).replace("'", ""), False
    short = word.replace(".", "")
    word = short if len(short) <= _INITIALS else word
    # The one in "e-mail", and not the one in "O-".
    return (word if word.endswith("-") else word.replace("-", "")), False


def link(text: str) -> str:
    """A URL, mail address or path."""
    for prefix in ("https://", "http://", "www."):
        text = text.removeprefix(prefix)
    host, slash, path = text.partition("/")
    return host.lower() + (slash + path).rstrip("/.,;:!?)'")
