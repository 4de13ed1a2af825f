"""Where words, numbers, quotes, code and links begin and end in a text, in any script.

Each pattern takes time in proportion to the text: none fails late and is tried again one character on.
"""

import re
import unicodedata
from collections.abc import Iterator
from enum import Enum, auto

import msgspec

_GROWTH = 4
"""Times as long as it was may a text become by normalisation; a single character can become eighteen."""
_ALIKE = str.maketrans(
    {
        **dict.fromkeys("“”„‟«»〝〞「」『』", '"'),
        **dict.fromkeys("‘’‚‛ʼ´", "'"),
        **dict.fromkeys("‐‑‒–—−", "-"),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", None),
        "⁄": "/",
        "×": "*",
        "÷": "/",
    }
)
"""Ways to write one and the same sign, and signs that nobody sees."""
_QUOTES = re.compile(r'"{2,}|(?<!\w)\'\'|\'\'(?!\w)')


class Kind(Enum):
    WORD = auto()
    NUMBER = auto()
    SIGN = auto()
    """Of a formula."""
    QUOTE = auto()
    CODE = auto()
    LINK = auto()
    """URL, mail address or path of a file."""
    SYMBOL = auto()
    """Any other that may be what is asked about, and no punctuation."""
    MONEY = auto()
    """The sign of a currency."""
    DATE = auto()
    TIME = auto()
    COMMA = auto()
    """Or a slash or ampersand: stands between things that are listed."""
    STOP = auto()
    """The end of a sentence, or what is as good as one."""


class Token(msgspec.Struct, frozen=True, gc=False):
    kind: Kind
    text: str
    tail: str = ""
    """Letters that stick to a number."""


_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670"
    "\u06d6-\u06dc\u06df-\u06e8"
    "\u0900-\u0903\u093a-\u0963\u0981-\u0983\u09bc-\u09d7\u0a01-\u0a75\u0abc-\u0ae3\u0b3c-\u0b57\u0bbe-\u0bd7"
    "\u0c00-\u0c63\u0cbc-\u0ce3\u0d3b-\u0d63\u0dca-\u0ddf"
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1-\u0ebc\u0ec8-\u0ecd"
    "\u102b-\u103e\u1056-\u1060\u17b4-\u17d3"
)
"""Vowels and accents that are parts of words, but no letters to `re`."""
_LETTER = rf"(?:[^\W\d_]|[{_MARKS}])"
_TOKEN = re.compile(
    rf"""
    (?P<plain>[A-Za-z]{{3,}}+(?=[ ?,]|\Z))
  | ```(?P<fence>(?:[^`]|`(?!``))*+)(?:```)?
  | (?<!\w)`(?P<code>[^`\n]++)`(?!\w)
  | "(?P<quote>[^"]++)"
  | (?<![\w'])'(?=\S)(?P<single>[^'\n]{{2,}}+)'(?!\w)
  | (?P<link>(?<![\w.+-])(?:(?:https?|ftp|wss?|file)://|www\.)[^\s"<>]++
        |(?<![\w.+-])[\w.+-]++@[\w-]++(?:\.[\w-]++)++
        |(?<![\w/.~\\])(?:(?:~|\.{{1,2}})(?:/[\w.-]++)++|(?:/[\w.-]++){{2,}}+)/?
        |(?<!\w)[A-Za-z]:\\[^\s"<>]++)
  | (?P<call>(?<!\w)[A-Za-z_][\w.]*+\((?:\)|(?=[^()\n]*[,="\['])[^()\n]*+\)))
  | (?P<date>(?<![\d.])(?:\d{{4}}(?P<dash>[-/.])\d{{1,2}}(?P=dash)\d{{1,2}}|\d{{1,2}}\.\d{{1,2}}\.\d{{4}}
        |\d{{1,2}}(?P<slash>[-/])\d{{1,2}}(?P=slash)(?:\d{{4}}|\d\d))(?![\d-]|[./]\d))
  | (?P<time>(?<![\d.,:])\d{{1,2}}(?::\d\d(?::\d\d)?(?!\d)(?:\ ?[AaPp]\.?[Mm]\b)?|\ ?[AaPp]\.?[Mm]\b))
  | (?P<number>\d{{1,3}}(?:,\d{{2,3}})+(?:\.\d++)?(?!\d)|\d++(?:[./]\d++)*+)(?P<tail>'s(?!\w)|[^\W\d_]*+)
  | (?P<initials>(?<!\w)(?:[^\W\d_]\.(?=\w)){{1,}}(?:[^\W\d_]\.?(?!\w)|[A-Z][a-z]++))
  | (?<!\w)(?P<short>(?:[Vv]s|[DdMmJjSs]r|[Mm]r?s|[Ss]t|[Pp]rof)(?=\.\ ?\w)
        |(?:[Rr]s|[Nn]o|[Vv]ol|[Vv]er)(?=\.\ ?\d))\.
  | (?P<pair>(?<!\w)[A-Za-z]{{1,2}}\ ?&\ ?[A-Za-z]{{1,2}}(?!\w))
  | (?P<word>(?:(?<!\w)[eE]-(?=[a-z]))?{_LETTER}
        (?:{_LETTER}|'(?=[^\W\d])|_(?=\w)|(?<=_)\d|\.(?=[a-z]|[A-Z](?!\w)))*+
        (?:\+\+|[+\#](?!\w)|(?:(?<=\b\w)|(?<=\b\w\w))-(?!\w))?)
  | (?P<percent>(?<=\d)\ ?(?:%(?![\w(])|°\ ?[CFcf]?(?!\w)))
  | (?<=[\w)])\ ?(?P<sign>[=<>^*+]{{1,3}}|!=|[≤≥≠≈±√∈∑∫→%])\ ?(?=[\w(+√-])
  | (?P<money>[$€£¥₹₽₩])
  | (?P<comma>[,&/|،、])
  | (?P<symbol>(?<!\S)[~@\#^*+=<>\\{{}}%]{{1,3}}(?![^\s?.,]))
  | (?P<stop>[.?!;:\n()\[\]。；؟।])
  | (?P<picture>[^\x00-\x7f\w\s])
  """,
    re.VERBOSE,
)
"""The first of these is found at once, and is what most of a text is made of."""
_KINDS = {
    "plain": Kind.WORD,
    "fence": Kind.CODE,
    "code": Kind.CODE,
    "call": Kind.CODE,
    "quote": Kind.QUOTE,
    "single": Kind.QUOTE,
    "link": Kind.LINK,
    "date": Kind.DATE,
    "time": Kind.TIME,
    "tail": Kind.NUMBER,
    "initials": Kind.WORD,
    "short": Kind.WORD,
    "pair": Kind.WORD,
    "word": Kind.WORD,
    "sign": Kind.SIGN,
    "money": Kind.MONEY,
    "percent": Kind.WORD,
    "symbol": Kind.SYMBOL,
    "picture": Kind.SYMBOL,
    "comma": Kind.COMMA,
    "stop": Kind.STOP,
}
"""By the group of the pattern that ends last."""


def clean(text: str) -> str:
    """The text with each sign written in one way (NFKC and what it leaves apart)."""
    if text.isascii():
        return _QUOTES.sub('"', text)
    # Lone surrogates, which JSON can hold, are no characters.
    text = text.encode("utf-8", "ignore").decode()
    text = text.strip()
    text = unicodedata.normalize("NFKC", text.translate(_ALIKE))[: _GROWTH * len(text)].translate(_ALIKE)
    digits = {ord(sign): str(unicodedata.decimal(sign)) for sign in set(text) if sign.isdecimal()}
    return _QUOTES.sub('"', text.translate(digits))


def tokens(text: str) -> Iterator[Token]:
    """Of a clean text."""
    for found in _TOKEN.finditer(text):
        group = found.lastgroup or ""
        kind = _KINDS[group]
        if kind is Kind.NUMBER:
            at = found.start()
            before = text[max(at - 2, 0) : at]
            # A minus, and no dash between two numbers or words.
            minus = before.endswith("-") and (len(before) == 1 or before[0] in " \n(=<>*/^+,")
            yield Token(kind, "-" * minus + found["number"], found["tail"])
        elif group == "percent":
            yield Token(kind, found[group].replace(" ", ""))
        elif group != "picture" or unicodedata.category(found[group])[0] == "S":
            yield Token(kind, found[group])
