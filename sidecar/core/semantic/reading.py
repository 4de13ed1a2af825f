"""From a text to its words: which say something, what they are, and how each hangs on those before it."""

from collections.abc import Sequence

from sidecar.core.semantic import capitals, languages, numbers, questions
from sidecar.core.semantic.english import DENIALS, Side, key, sides, telling
from sidecar.core.semantic.marks import (
    DATE,
    JOINED,
    LINK,
    LINKS,
    LISTED,
    NAME,
    NEGATED,
    NUMBER,
    OWNER,
    THAN,
    UNIT,
    VERB,
    VERSION,
)
from sidecar.core.semantic.spelling import bare, link
from sidecar.core.semantic.tokens import Kind, Token, clean, tokens
from sidecar.core.semantic.vocabulary import FUNCTION, closed

_LISTS = closed("and or nor plus versus vs")
_WEAK = closed("a an the my your our their his her its some any another also both")
"""May stand in a list."""
_NEGATIONS = closed("not no never none nothing nobody neither nor cannot without non nowhere hardly")
_REACH = 4
"""Words from a negation to the one that is negated, at most."""
_ORDINALS = {"1st": "first", "2nd": "second"}
"""Mostly no numbers, so that they are words in digits as well."""
_STICKING = 2
"""Letters of a unit that sticks to its number, at least: "6s" and "5G" are no seconds and no grams."""
_NOT_APART = closed("a x h s in")
"""Units that are other words where they do not stick to their number."""


class Reading:
    """What a text says, put together token by token."""

    def __init__(self, text: str) -> None:
        text = clean(text)
        found = list(tokens(text))
        spoken = [token.text.lower() for token in found if token.kind is Kind.WORD]
        self.script = languages.scripts(text)
        self.language = languages.language(spoken, self.script)
        self.size = 0
        self.words: list[str] = []
        self.marks: list[int] = []
        self.quotes: list[str] = []
        self.code: list[str] = []
        self.kinds: set[str] = set()
        self.labels: set[str] = set()
        self.sides: set[Side] = set()
        self.negated = False
        self._english = self.language == "en" or (not self.language and self.script in {"latin", ""})
        self._shouting = text.isupper()
        self._telling = not self._shouting and capitals.tell(found)
        self._sentence: list[str] = []
        self._clauses = [0]
        self._link, self._listing, self._joining, self._broken = 0, False, False, False
        self._fresh = True
        """At the beginning of a sentence, where everything has a capital."""
        self._named = False
        """The word before may be a name."""
        self._version = False
        """What comes is the number of a version."""
        self._negation = 0
        """Words among which the negated one is still looked for."""
        self._read(found)
        self._end()
        if not self.words:
            # Where none says anything, all do: "Who are you?"
            self.words = spoken
            self.marks = [0] * len(spoken)
        self.sides = telling(self.sides)

    def _read(self, found: Sequence[Token]) -> None:
        at = 0
        while at < len(found):
            token, after = found[at], _next(found, at)
            at += 1
            match token.kind:
                case Kind.WORD if self._english:
                    at = self._word(found, at - 1)
                    continue
                case Kind.NUMBER:
                    at = self._number(found, at - 1, "")
                    continue
                case Kind.MONEY if after is not None and after.kind is Kind.NUMBER:
                    at = self._number(found, at, numbers.UNITS.get(token.text, token.text))
                    continue
                case Kind.WORD:
                    self._foreign(token.text)
                case Kind.STOP:
                    self._end()
                case Kind.COMMA:
                    self._clauses.append(len(self._sentence))
                    self._listing, self._joining = True, self._joining or token.text in "/&"
                case Kind.QUOTE:
                    self._quote(token.text)
                case Kind.CODE:
                    self._code(token.text)
                case Kind.LINK:
                    self.code.append(link(token.text))
                case Kind.DATE:
                    for part in numbers.parts(token.text):
                        self._add(part, NUMBER | DATE if part.isdecimal() else DATE)
                case Kind.TIME:
                    self._add(numbers.time(token.text), DATE)
                case Kind.SYMBOL:
                    self._add(token.text, 0)
                case Kind.SIGN | Kind.MONEY:
                    self._add(token.text, NUMBER)
            self._named = False

    def _end(self) -> None:
        """Of a sentence."""
        if self._sentence and self._english:
            self.kinds.add(questions.kind(self._sentence, self._clauses))
        self._sentence, self._clauses = [], [0]
        self._link, self._broken = 0, True
        self._fresh, self._negation = True, 0

    def _quote(self, text: str) -> None:
        inner = list(tokens(text))
        said = " ".join(token.text.lower() for token in inner if token.kind in {Kind.WORD, Kind.NUMBER})
        if said:
            self.quotes.append(said)
        self._fresh = True
        # Its end is no end of the sentence that it stands in.
        self._read([token for token in inner if token.kind is not Kind.STOP])

    def _code(self, text: str) -> None:
        text = " ".join(text.split())
        inner = list(tokens(text))
        if len(inner) == 1 and inner[0].kind is Kind.WORD and inner[0].text == text:
            self._add(key(text.lower()) or text, NAME)  # as it is without being marked as code
        elif text:
            self.code.append(text)

    def _number(self, found: Sequence[Token], at: int, unit: str) -> int:
        """The number at that place; returns where to go on."""
        value, tail = numbers.number(found[at].text), found[at].tail.lower()
        if value + tail in _ORDINALS:
            self._add(_ORDINALS[value + tail], 0)
            return at + 1
        if tail in {"st", "nd", "rd", "th"}:
            tail = ""
        elif tail in {"s", "'s"} and value.endswith("0") and value != "0":
            tail = "s"  # a decade
        elif tail in numbers.SCALES:
            value, tail = numbers.times(value, numbers.SCALES[tail]), ""
        elif len(tail) >= _STICKING and tail in numbers.UNITS:
            unit, tail = unit or numbers.UNITS[tail], ""
        return self._measured(found, at + 1, value + tail, unit)

    def _measured(self, found: Sequence[Token], at: int, value: str, unit: str) -> int:
        """A number whose scale and unit may follow at that place."""
        following = _word_at(found, at)
        if unit in numbers.MONEY and following in numbers.SHORT_SCALES:
            following = numbers.SHORT_SCALES[following]
        if len(following) > 1 and following in numbers.SCALES:
            value = numbers.times(value, numbers.SCALES[following])
            at += 1
            following = _word_at(found, at)
        if not unit and following in numbers.UNITS and following not in _NOT_APART:
            unit = numbers.UNITS[following]
            at += 1
            if unit == "°" and _word_at(found, at) in numbers.SCALED:
                unit = numbers.SCALED[_word_at(found, at)]
                at += 1
        if unit:
            value = numbers.plain(value)
        version = self._version or ("." in value and not unit and (self._named or value.count(".") > 1))
        self._add(value, NUMBER | VERSION if version else NUMBER)
        if unit:
            self._add(unit, UNIT)
        self.size += 1
        self._sentence.append(value)
        self._fresh = self._named = self._version = False
        return at

    def _word(self, found: Sequence[Token], at: int) -> int:
        """The English word at that place; returns where to go on."""
        text, after = found[at].text, _next(found, at)
        fresh, self._fresh = self._fresh, False
        word, denied = bare(text)
        if denied:
            self._deny()
        if word == "long" and self._sentence[-1:] == ["how"]:
            word = "time"  # "how much time"
        self.size += 1
        self._sentence.append(word)
        numeral = after is not None and after.kind is Kind.NUMBER
        if numeral and word in {"v", "ver", "version"}:
            self._version = True
            return at + 1
        if numeral and word in numbers.MONEY:
            return self._number(found, at + 1, numbers.UNITS[word])
        if word in numbers.WORDS:
            value, words = numbers.spelt(word, _word_at(found, at + 1))
            return self._measured(found, at + words, value, "")
        capital = text[0].isupper() and not fresh and self._telling and text != "I"
        beside = numeral or (at > 0 and found[at - 1].kind is Kind.NUMBER)
        self._note(word, after)
        if moment := numbers.date(word, sure=beside or capital):
            self._add(moment, DATE)
            self._named = False
            return at + 1
        name = (
            capital
            or (not self._shouting and capitals.named(text))
            or (len(word) == 1 and word not in FUNCTION)
        )
        meaning = key(word)
        if not meaning and name and text.isupper():
            meaning = text.replace(".", "")  # US, IT, WHO
        if meaning:
            self._add(meaning, NAME if name else 0)
        else:
            self._pass(word)
        self._named = bool(meaning) and text[0].isupper()
        if meaning and text.endswith(("'s", "s'")):
            self._link, self._broken = OWNER, True
        return at + 1

    def _note(self, word: str, after: Token | None) -> None:
        """What a word says of the whole."""
        self._negation -= 1
        self.sides.update(sides(word))
        if word in questions.LABELS:
            self.labels.add(questions.LABELS[word])
        if word in _NEGATIONS:
            last = self._sentence[-2] if len(self._sentence) > 1 else ""
            if word == "not" and last in {"or", "why"}:
                return  # "Is it so or not?", "Why not?"
            if word == "not" and after is not None and after.text.lower() in {"only", "just"}:
                return
            if word == "no" and after is not None and after.kind is Kind.NUMBER:
                return
            self._deny()
        elif word in DENIALS:
            self._deny()

    def _deny(self) -> None:
        self.negated, self._negation = True, _REACH

    def _foreign(self, text: str) -> None:
        whole = text.lower()
        split = not text.isascii() and languages.script(text[0]) in languages.UNSPACED
        for word in whole if split else (whole,):
            self.size += 1
            if not languages.article(word, self.language):
                self._add(word, 0)

    def _pass(self, word: str) -> None:
        """A word that is left out."""
        if word in _LISTS:
            self._listing = self._joining = True
        elif word not in _WEAK:
            self._broken = True
            if self._link == THAN:
                return  # "than to drive"
            if word in LINKS:
                self._link = LINKS[word]
            elif word not in FUNCTION:
                self._link = VERB

    def _add(self, word: str, marks: int) -> None:
        if self.words and self._listing and not self._broken:
            marks |= LISTED
            if self._joining:
                marks |= JOINED
                self.marks[-1] |= JOINED
        if self._negation > 0:
            marks |= NEGATED
            self._negation = 0
        self.words.append(word)
        self.marks.append(marks | self._link << LINK)
        self._link, self._listing, self._joining, self._broken = 0, False, False, False


def _next(found: Sequence[Token], at: int) -> Token | None:
    return found[at + 1] if at + 1 < len(found) else None


def _word_at(found: Sequence[Token], at: int) -> str:
    """In lower case; empty where there is none."""
    return found[at].text.lower() if at < len(found) and found[at].kind is Kind.WORD else ""
