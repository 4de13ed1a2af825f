"""Numbers, units, dates and times of day, each brought into one way of writing it."""

import re
from collections.abc import Iterator, Mapping
from decimal import Decimal

from sidecar.core.semantic.vocabulary import closed, ordered

_TEN = 10
_ONES = ordered("zero . two three four five six seven eight nine ten eleven twelve")
_TEENS = ordered("thirteen fourteen fifteen sixteen seventeen eighteen nineteen")
_TENS = ordered("twenty thirty forty fifty sixty seventy eighty ninety")
_ORDINALS = ordered("third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth")
WORDS: Mapping[str, int] = {
    **{word: value for value, word in enumerate(_ONES + _TEENS) if word != "."},
    **{word: value for value, word in enumerate(_ORDINALS, 3)},
    **{word: value * _TEN for value, word in enumerate(_TENS, 2)},
}
"""Without "one", "first" and "second", which mostly say something else."""
SCALES: Mapping[str, int] = {
    "hundred": 10**2,
    "thousand": 10**3,
    "k": 10**3,
    "lakh": 10**5,
    "lac": 10**5,
    "lakhs": 10**5,
    "million": 10**6,
    "mn": 10**6,
    "mio": 10**6,
    "crore": 10**7,
    "crores": 10**7,
    "billion": 10**9,
    "bn": 10**9,
    "trillion": 10**12,
    "dozen": 12,
}
SHORT_SCALES: Mapping[str, str] = {"m": "million", "b": "billion", "t": "trillion"}
"""Behind sums of money."""
_UNITS = """
km kms kilometer kilometers kilometre kilometres; m meter meters metre metres;
cm centimeter centimeters centimetre centimetres; mm millimeter millimeters millimetre millimetres;
nm nanometer nanometers; mi mile miles; yd yard yards; ft foot feet; inch inches;
kg kgs kilo kilos kilogram kilograms; g gram grams gm gms; mg milligram milligrams; lb lbs pound pounds;
oz ounce ounces; ton tons tonne tonnes; l liter liters litre litres;
ml milliliter milliliters millilitre millilitres; gal gallon gallons; ms millisecond milliseconds;
s sec secs seconds; min mins minute minutes; h hr hrs hour hours; day days; week weeks wk wks;
month months mo; year years yr yrs; decade decades; century centuries; mph; kmh kph kmph; knot knots; hz;
khz; mhz; ghz; w watt watts; kw kilowatt kilowatts; mw megawatt megawatts; kwh; v volt volts;
a amp amps ampere amperes; mah; ohm ohms; kb; mb; gb; tb; pb; kib; mib; gib; tib; kbps; mbps; gbps;
px pixel pixels; mp megapixel megapixels; dpi; fps; rpm; db decibel decibels; % percent percentage pct;
° degree degrees; °c celsius centigrade; °f fahrenheit; kelvin; cal calorie calories; kcal; joule joules; bar;
psi; $ usd dollar dollars buck bucks; € eur euro euros; £ gbp quid; ¥ yen jpy; ₹ inr rs rupee rupees;
yuan rmb cny; cent cents; bit bits; byte bytes; token tokens; x times;
"""
UNITS: Mapping[str, str] = {name: group.split()[0] for group in _UNITS.split(";") for name in group.split()}
"""Every way to write a unit behind a number, and the one that stands for it."""
SCALED: Mapping[str, str] = {"c": "°c", "celsius": "°c", "centigrade": "°c", "f": "°f", "fahrenheit": "°f"}
"""Units behind degrees."""
MONEY = frozenset("$€£¥₹₽₩") | closed("rs inr usd eur gbp")
"""Units that stand before the number as well."""
_MONTHS = ordered("january february march april may june july august september october november december")
_DAYS = ordered("monday tuesday wednesday thursday friday saturday sunday")
_SHORT: Mapping[str, str] = {
    **{name[:3]: name for name in (*_MONTHS, *_DAYS)},
    "sept": "september",
    "tues": "tuesday",
    "thur": "thursday",
    "thurs": "thursday",
}
_RELATIVE = closed("yesterday tomorrow tonight")
_DOUBTFUL = _SHORT.keys() | closed("may march august")
"""Other words and names as well: dates only in capitals or beside a number."""
_DATE = re.compile(r"[-/.]")
_TIME = re.compile(r"(\d+)(?::(\d+))?(?::(\d+))? ?([ap]?)")
_LONGEST = 18
"""Digits of a number that is reckoned with; longer ones are only compared."""


def spelt(word: str, after: str) -> tuple[str, int]:
    """A number that begins with one of `WORDS`, and of how many words it is: perhaps "twenty-five"."""
    value, more = WORDS[word], 1 if after == "one" else WORDS.get(after, _TEN)
    if word in _TENS and more < _TEN:
        return str(value + more), 2
    return str(value), 1


def number(text: str) -> str:
    """Digits, perhaps with a point, separators and a minus."""
    text = text.replace(",", "")
    minus, digits = text[: text.startswith("-")], text.lstrip("-").lstrip("0")
    return minus + (digits if digits[:1].isdecimal() else "0" + digits)


def times(value: str, scale: int) -> str:
    """A number and a word such as "million"."""
    digits = value.removeprefix("-").replace(".", "", 1)
    if len(value) > _LONGEST or not digits.isdecimal():  # "3a", "20s", "1/2", "1.2.3"
        return f"{value}*{scale}"
    return plain(format(Decimal(value) * scale, "f"))


def plain(value: str) -> str:
    """A number that is a measure, and no version, without the zeros at its end that say nothing."""
    return value.rstrip("0").rstrip(".") if value.count(".") == 1 else value


def date(word: str, *, sure: bool) -> str:
    """A month, a day of the week or the like, in full; empty for another word. `sure`: a capital or a number
    speaks for it."""
    if word in _DOUBTFUL and not sure:
        return ""
    if word in _RELATIVE or word in _MONTHS or word in _DAYS:
        return word
    return _SHORT.get(word, "")


def parts(text: str) -> Iterator[str]:
    """Of a date in digits: the month by its name, if it is clear which one it is."""
    first, second, third = _DATE.split(text)
    if len(first) == 4:
        year, month, day = first, int(second), int(third)
    elif int(first) > 12 or "." in text:
        year, month, day = third, int(second), int(first)
    elif int(second) > 12:
        year, month, day = third, int(first), int(second)
    else:
        yield text  # of May or of March: who knows
        return
    yield _MONTHS[month - 1] if 0 < month <= len(_MONTHS) else str(month)
    yield str(day)
    yield year if len(year) > 2 else "20" + year


def time(text: str) -> str:
    """A time of day on a clock of 24 hours, as far as that is clear."""
    found = _TIME.match(text.lower())
    if found is None:
        return text
    hour, minute, second, half = int(found[1]), int(found[2] or 0), found[3], found[4]
    if half:
        hour = hour % 12 + 12 * (half == "p")
    return f"{hour}:{minute:02}" + (f":{second}" if second else "")
