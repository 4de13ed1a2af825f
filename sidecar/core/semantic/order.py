"""Whether two of the words that two questions share have changed places, and with them the parts they play.

"Is Bach better than Brahms" and "Is Brahms better than Bach" have the same words, and so have "hotels in Rome
for families" and "hotels for families in Rome". What tells them apart are the links. In the first pair,
places keep them: what comes second hangs on "than". In the second pair, words take them along.
"""

from collections.abc import Sequence

from sidecar.core.semantic.marks import LINK, LISTED

LONGEST = 24
"""Words among which a swap is looked for. Where more of them are in another order, it is another text."""

Word = tuple[str | int, int]
"""With its marks."""


def swapped(mine: Sequence[Word], other: Sequence[Word]) -> bool:
    """Of the same words in two orders."""
    begin, end = 0, len(mine)
    while begin < end and mine[begin][0] == other[begin][0]:
        begin += 1
    while begin < end and mine[end - 1][0] == other[end - 1][0]:
        end -= 1
    behind = [word for word, _ in mine[end:]]
    mine, other = mine[begin:end], other[begin:end]
    if len(mine) > LONGEST:
        return True
    words, theirs = [word for word, _ in mine], [word for word, _ in other]
    size = len(words)
    # X M Y on one side is Y M X on the other one; M may be empty.
    for first in range(1, size):
        if words[:first] != theirs[size - first :]:
            continue
        for last in range(1, size - first + 1):
            between = words[first : size - last]
            if words[size - last :] != theirs[:last] or between != theirs[last : size - first]:
                continue
            # "Tap water and bottled water": what is between them comes again behind.
            again = behind[: len(between)] == between
            if _parts(mine, other, first, last, again=again):
                return True
    return False


def _parts(mine: Sequence[Word], other: Sequence[Word], first: int, last: int, *, again: bool) -> bool:
    """Whether the two, of so many words, have changed parts. The same for both orders."""
    second, theirs = len(mine) - last, len(mine) - first
    if _listed(mine, first, second, again=again) and _listed(other, last, theirs, again=again):
        return False
    begin, end = mine[0][1] >> LINK, mine[second][1] >> LINK
    if begin != other[0][1] >> LINK or end != other[theirs][1] >> LINK:
        return False
    if begin and begin == end:
        return False  # "in Rome in May"
    # Side by side and linked by nothing, they are one thing with two names, and not two.
    return first < second or end != 0


def _listed(words: Sequence[Word], first: int, second: int, *, again: bool) -> bool:
    """Whether what ends before the one place and begins at the other stands in one list."""
    between = range(second, second + 1) if again else range(first, second + 1)
    return all(words[at][1] & LISTED for at in between)
