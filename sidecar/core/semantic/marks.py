"""What is noted of a word: flags, and above them the link by which it hangs on those before it."""

from collections.abc import Mapping

from sidecar.core.semantic.vocabulary import ordered

NAME = 1
"""Written as a name: a capital where none has to be, or as no ordinary word is."""
NUMBER = 2
"""Or a sign of a formula."""
UNIT = 4
"""Of the number before it."""
DATE = 8
"""A month, a day, a time of day."""
VERSION = 16
LISTED = 32
"""Only "and", "or", a comma or a slash is between it and the word before it."""
JOINED = 64
"""Only "and", "or" or a slash is between it and the word before it or behind it."""
NEGATED = 128

LINK = 8
"""Bits below the link, which is 0 where nothing between two words tells how they belong together."""
_HANGING = """
    than to into onto from of by with without for about over under against on in at as through toward towards
    via behind after before until since because if when while between versus like is are was were
"""
LINKS: Mapping[str, int] = {word: number for number, word in enumerate(ordered(_HANGING), 3)}
"""A word behind one of these hangs on it."""
VERB = 1
"""Between the two is a word that says little, mostly a verb."""
OWNER = 2
"""The word before has a possessive."""
THAN = LINKS["than"]
