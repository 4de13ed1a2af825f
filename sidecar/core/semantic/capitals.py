"""Which words are written as names, going by their capitals and signs, where those tell anything."""

from collections.abc import Iterable

from sidecar.core.semantic.marks import LINKS
from sidecar.core.semantic.tokens import Kind, Token
from sidecar.core.semantic.vocabulary import FUNCTION, closed

_SMALL = closed("a an the and or but nor so yet i") | LINKS.keys() - closed("is are was were")
"""Small even in titles, or never."""


def tell(tokens: Iterable[Token]) -> bool:
    """Whether a capital within a sentence says that there is a name. In titles All Words Have One, as is seen
    by those that are no names for certain."""
    balance, fresh = 0, True
    for token in tokens:
        if token.kind is Kind.STOP:
            fresh = True
        elif token.kind is Kind.WORD:
            word = token.text.lower()
            if not fresh and word in FUNCTION and word not in _SMALL:
                balance += 1 if token.text[0].isupper() else -1
            fresh = False
    return balance <= 0


def named(text: str) -> bool:
    """Whether a word is written as none but names, identifiers and abbreviations are."""
    if text[-1] in "+#-" or "_" in text or "&" in text:
        return True
    inner = text[1:].removesuffix("s")
    return inner != inner.lower()
