"""English words without their endings, so that "prices" and "priced" are the same word.

Light on purpose: what is joined wrongly may be a false hit, what is left apart only a miss.
"""

import re
from functools import lru_cache

from sidecar.core.semantic.vocabulary import closed

_VOWELS = frozenset("aeiouy")
_SPELLINGS = (("isation", "ization"), ("ising", "izing"), ("ised", "ized"), ("ise", "ize"), ("yse", "yze"))
"""British endings, and what they are in American."""
_NOT_IZE = closed("""
    wise rise raise praise noise precise exercise promise advise surprise otherwise likewise concise
    enterprise expertise franchise merchandise premise supervise televise compromise disguise paradise
    arise devise revise excise treatise demise cruise bruise poise
""")
_ENDINGS = (
    # What is left needs as many letters as the number says; the longest endings first.
    ("ization", "iz", 3),
    ("fulness", "ful", 3),
    ("iveness", "iv", 4),
    ("ication", "ic", 4),
    ("ation", "", 4),
    ("ition", "", 4),
    ("very", "ver", 4),
    ("ement", "", 4),
    ("ment", "", 4),
    ("ness", "", 4),
    ("ity", "", 5),
    ("tion", "t", 4),
    ("sion", "s", 4),
    ("ical", "ic", 3),
    ("ally", "", 4),
    ("ance", "", 5),
    ("ence", "ent", 4),
    ("ly", "", 3),
    ("al", "", 5),
    ("ate", "", 4),
    ("ive", "", 5),
    ("ful", "", 4),
    ("able", "", 4),
    ("ible", "", 4),
    ("ancy", "ant", 4),
    ("ency", "ent", 4),
    ("ian", "ia", 3),
    ("ican", "ica", 3),
)
_DOUBLE = re.compile(r"([b-df-hj-np-tv-z])\1")
"""Letters that are easily forgotten, or written once too often, in long words."""
_LONG = 6
_REMEMBERED = 4096
"""Words, with their stems."""
_ROUNDS = 3
"""Endings that one word may have: education-al-ly."""
_WHOLE = closed("""
    apply reply supply multiply imply comply business news family only early italy july assembly station
    status nation action section question mission million billion trillion animal hospital capital
    mineral material city university quality community security identity climate private state
""")
"""Words that only look as if they had an ending, or mean something else without it."""
_IRREGULAR = """
arise arose arisen; awake awoke awoken; beat beaten; become became; begin began begun; bend bent;
bind bound; bite bit bitten; bleed bled; blow blew blown; break broke broken; breed bred; bring brought;
build built; burn burnt; buy bought; catch caught; choose chose chosen choice; cling clung; come came;
creep crept; deal dealt; day daily; dig dug; dive dove; draw drew drawn; dream dreamt; drink drank drunk;
drive drove driven; eat ate eaten; fall fell fallen; feed fed; feel felt; fight fought; find found;
flee fled; fly flew flown flight; forbid forbade forbidden; forget forgot forgotten; forgive forgave forgiven;
freeze froze frozen; get got gotten; give gave given; go went gone; grow grew grown growth; hang hung;
hear heard; hide hid hidden; hold held; keep kept; kneel knelt; know knew known; lay laid; lead led;
lean leant; leap leapt; learn learnt; lend lent; lie lay lain; light lit; lose lost loss;
make made; mean meant; meet met; pay paid; ride rode ridden; ring rang rung; rise rose risen; run ran;
say said; see saw seen; seek sought; sell sold; send sent; shake shook shaken; shine shone; shoot shot;
show shown; shrink shrank shrunk; sing sang sung; sink sank sunk; sit sat; sleep slept; slide slid;
smell smelt; speak spoke spoken; speed sped; spell spelt; spend spent; spill spilt; spin spun;
spoil spoilt; stand stood; steal stole stolen; stick stuck; sting stung; stink stank stunk;
strike struck; strive strove striven; swear swore sworn; sweep swept; swell swollen; swim swam swum;
swing swung; take took taken; teach taught; tear tore torn; tell told; think thought thoughts;
throw threw thrown; understand understood; wake woke woken; wear wore worn; weave wove woven; weep wept;
win won; withdraw withdrew; write wrote written; die died dying dies death; tie tying; lie lying;
man men; woman women; child children; foot feet; tooth teeth; goose geese; mouse mice; louse lice;
ox oxen; life lives; wife wives; knife knives; leaf leaves; half halves; wolf wolves; shelf shelves;
loaf loaves; thief thieves; self selves; datum data; medium media; criterion criteria;
phenomenon phenomena; crisis crises; thesis theses; hypothesis hypotheses; axis axes;
index indices; matrix matrices; vertex vertices; appendix appendices; virus viruses; movie movies;
cookie cookies; selfie selfies; zombie zombies; series; species; news; bus buses; gas gases; lens lenses;
apply application applications applied applies applying; important importance importantly;
use uses used using; add added adds adding; agree agreement; photo photos;
history historic historical; different difference differ; decide decision; science scientific;
analysis analyses analyze analyse analytical; relate relation relationship; explain explanation;
believe belief; advise advice; prove proof;
"""
_ADJECTIVES = """
big small large high low fast slow old young new long short strong weak cheap rich poor hard easy early
late hot cold warm cool dark light bright heavy wide narrow deep thick thin clean dirty safe dry wet soft
loud quiet quick smart clever wise kind nice great fine close near simple happy healthy ugly pretty lovely
funny crazy busy lazy lucky tall fat full rare rude sad sharp sick slim smooth strange sweet tiny tough
weird dumb mean calm fair brave cruel
"""


def _compared(word: str) -> set[str]:
    """An adjective's comparative and superlative, in every way that they could be formed."""
    short = word[:-1] + "i" if word.endswith("y") else word.removesuffix("e")
    return {form + ending for form in (short, short + short[-1]) for ending in ("er", "est")}


def _table() -> dict[str, str]:
    table: dict[str, str] = {}
    for group in _IRREGULAR.split(";"):
        if group.strip():
            # A form of one word may be another word: the first one has it.
            base, *forms = group.split()
            for form in (base, *forms):
                table.setdefault(form, base)
    for word in _ADJECTIVES.split():
        for form in _compared(word):
            table.setdefault(form, word)
    return table


_BASES = _table()


def base(word: str) -> str:
    """An irregular form, plural, or comparative as what it is a form of; others as they are."""
    return _BASES.get(word, word)


@lru_cache(maxsize=_REMEMBERED)
def stem(word: str) -> str:
    """Of a word in lower case. Words of one family have the same stem; it need not be a word."""
    word = _BASES.get(word, word)
    if len(word) < 4 or word in _WHOLE or not word.isascii():
        return word
    word = _spelled(_inflected(word))
    for _ in range(_ROUNDS):
        if word in _WHOLE:
            return word
        for ending, instead, least in _ENDINGS:
            if word.endswith(ending) and len(word) - len(ending) >= least:
                word = word[: -len(ending)] + instead
                break
        else:
            break
    if len(word) > 3 and word[-1] == "y" and word[-2] not in _VOWELS:
        word = word[:-1] + "i"
    word = word.removesuffix("e") if len(word) > 3 else word
    return _DOUBLE.sub(r"\1", word) if len(word) >= _LONG else word


def _inflected(word: str) -> str:
    """Without the ending of a plural, a past or a participle."""
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith(("sses", "shes", "ches", "xes", "zes")):
        word = word[:-2]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    if word in _BASES:
        return _BASES[word]
    for ending in ("ing", "ed"):
        left = word.removesuffix(ending)
        if left != word and len(left) >= 3 and not _VOWELS.isdisjoint(left):
            if word.endswith("ied"):
                return word[:-3] + "y"
            if left[-1] == left[-2] and left[-1] not in "sl":
                left = left[:-1]
            elif left.endswith(("at", "iz", "is", "yz")) and len(left) > 4:
                left += "e"
            return _BASES.get(left, _BASES.get(left + "e", left))
    return word


def _spelled(word: str) -> str:
    """In American spelling, as far as endings tell."""
    if word.endswith("our") and len(word) > 5:
        return word[:-3] + "or"
    if word.endswith("tre") and len(word) > 4:
        return word[:-2] + "er"
    if word.endswith("ogue") and len(word) > 6:
        return word[:-2]
    for british, american in _SPELLINGS:
        if word.endswith(british) and word not in _NOT_IZE and len(word) - len(british) >= 4:
            return word[: -len(british)] + american
    return word
