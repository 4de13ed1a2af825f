"""Which script and language a text is in, by the names of its letters and the commonest words.

Of other languages than English no more is known than that, and which of their words may be there or not.
"""

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from itertools import chain

from sidecar.core.semantic.vocabulary import closed

_SCRIPTS = {"hiragana": "kana", "katakana": "kana", "katakana-hiragana": "kana", "cjk": "han"}
"""Scripts by the first word of their letters' names, where that is not what they are called here."""
UNSPACED = frozenset({"han", "kana", "thai", "lao", "myanmar", "khmer", "tibetan"})
"""Scripts without spaces between words: each character counts as a word."""
_DENSE = 3
"""Letters that a character of such a script is worth."""
_REMEMBERED = 4096
"""Letters, with their scripts."""
_LEAST = 2
"""Words of a language before a text is believed to be in it."""

_COMMON: Mapping[str, frozenset[str]] = {
    "en": closed("""
        the a an and or but i you he she it we they me my your his her its our their is are was were be
        been am do does did has have had can could will would shall should may might must of in on at to
        for from with without by about into over under than as if so that this these those what which
        who whom whose when where why how not no any some there get best way good make don't doesn't
        isn't can't please vs
    """),
    "de": closed("""
        der die das den dem des ein eine einen einem einer eines und oder aber ich du er sie es wir ihr
        mich mir dich dir uns euch ihm ihn ihnen mein meine meinen dein deine sein seine ist sind war
        waren bin bist hat habe haben hatte wird werden wurde wurden kann können könnte man muss soll
        sollte zu zum zur im in am an auf aus bei mit nach von vom vor für über unter durch um als wie
        was wer wo wann warum wieso welche welcher welches wenn dass ob auch nur noch schon sehr mehr so
        dann denn da hier dort sich bitte gibt es nicht kein keine
    """),
    "fr": closed("""
        le la les l un une des du de d et ou mais je j tu il elle on nous vous ils elles me te se m t s
        mon ma mes ton ta tes son sa ses notre votre leur est sont suis es était étaient sera ai as a
        avons avez ont être avoir fait faire peut peux puis dois doit ce cet cette ces c qu que qui quoi
        quel quelle quels quelles où quand comment pourquoi combien à au aux en dans sur sous par pour
        avec chez entre vers si plus moins très bien y ne aussi il_y est-ce svp pas
    """),
    "es": closed("""
        el la los las un una unos unas y o u e pero yo tú él ella nosotros ustedes ellos ellas me te se
        nos le lo les mi mis tu tus su sus es son soy eres era fue ser está están estoy estar he ha han
        hay hacer hace puede puedo puedes debo debe de del a al en con por para sobre entre desde hasta
        que qué quién cuál cuáles cómo cuándo dónde cuánto cuántos como cuando donde si más menos muy
        también este esta estos estas ese eso no sin
    """),
    "it": closed("""
        il lo la i gli le un uno una l d e o ma io tu lui lei noi voi loro mi ti si ci vi mio mia miei
        tuo tua suo sua è sono sei era erano essere ho hai ha hanno abbiamo avere fare fa può posso puoi
        devo deve di del della dello dei delle degli a al alla ai alle da dal dalla in nel nella nei
        nelle con su sul sulla per tra fra che chi cosa come quando dove perché quanto quale quali se
        più meno molto anche questo questa questi queste non
    """),
    "pt": closed("""
        o a os as um uma uns umas e ou mas eu tu você ele ela nós vocês eles elas me te se nos meu minha
        meus minhas teu seu sua seus suas é são sou era foi ser está estão estar tenho tem têm ter fazer
        faz pode posso devo deve de do da dos das em no na nos nas por pelo pela para com sobre entre
        até ao aos à que quem qual quais como quando onde quanto quantos porque se mais menos muito
        também este esta isso isto não sem
    """),
    "nl": closed("""
        de het een en of maar ik jij je u hij zij ze wij we jullie mij me jou hem haar ons hun mijn jouw
        zijn uw is ben bent was waren word wordt worden heb hebt heeft hebben kan kunnen moet moeten zal
        zullen zou te in op aan uit bij met naar van voor over onder door om als dan wat wie waar
        wanneer waarom hoe welke welk dat die dit deze er ook nog al zeer meer zo hier daar niet geen
    """),
    "sv": closed("""
        den det en ett och eller men jag du han hon vi ni de mig dig sig oss min mitt mina din är var
        har hade kan ska skall vill att i på av för med till från om hur vad vem när var varför vilken
        vilket som så mycket inte
    """),
    "pl": closed("""
        i a o w z na do od po za ze się jest są był była być mam ma mają co kto gdzie kiedy dlaczego jak
        jaki jaka jakie który która które czy dla przez przy że to ten ta te mój moja moje ja ty on ona
        my wy oni nie
    """),
    "tr": closed("""
        bir ve veya ile bu şu o ben sen biz siz onlar için gibi kadar ne nasıl neden niçin kim nerede
        hangi mi mı mu mü var olan olarak daha en çok da de
    """),
    "id": closed("""
        yang dan atau di ke dari untuk dengan pada adalah ini itu saya aku kamu anda dia kami kita
        mereka apa siapa mana kapan mengapa kenapa bagaimana berapa ada bisa dapat akan sudah lebih
        tidak
    """),
    "vi": closed("""
        và hoặc là của tôi bạn anh chị họ chúng ta có cho với trong trên từ đến một những các này đó gì
        ai đâu nào sao thế khi được thì mà không
    """),
    "ru": closed("""
        и а но или я ты он она мы вы они меня мне тебя его её их нас вас мой моя мои твой свой это эта
        этот эти то в во на с со к ко о об от до из за для по при над под у же бы ли есть был была было
        были быть что кто где когда почему зачем как какой какая какие который чем чтобы если так очень
        ещё можно мочь не нет
    """),
    "uk": closed("""
        і та й але або я ти він вона ми ви вони мене мені його її їх мій моя це ця цей ці у в на з із до
        від за для по при над під же є був була було були бути що хто де коли чому як який яка які чи
        якщо так дуже не
    """),
}
"""By these a language is told. English is first: what speaks for two alike speaks for the first."""
_LANGUAGES: Mapping[str, tuple[str, ...]] = {
    word: tuple(name for name, known in _COMMON.items() if word in known)
    for word in chain.from_iterable(_COMMON.values())
}
_ARTICLES: Mapping[str, frozenset[str]] = {
    "de": closed("der die das den dem des ein eine einen einem einer eines bitte"),
    "fr": closed("le la les l un une des svp"),
    "es": closed("el la los las un una unos unas"),
    "it": closed("il lo la i gli l un uno una"),
    "pt": closed("o a os as um uma uns umas"),
    "nl": closed("de het een"),
    "sv": closed("den det en ett"),
    "han": frozenset("的了吗嗎呢吧啊呀么麼请請"),
}
"""Words that may be there or not. There are more, but of these it is certain."""


@lru_cache(maxsize=_REMEMBERED)
def script(letter: str) -> str:
    """By the letter's Unicode name."""
    name = unicodedata.name(letter, "").partition(" ")[0].lower()
    return _SCRIPTS.get(name, name)


def scripts(text: str) -> str:
    """The one that most of a text is in. Empty where it has no letters."""
    if text.isascii():
        return "latin" if any(map(str.isalpha, text)) else ""
    counts: Counter[str] = Counter()
    for letter, times in Counter(filter(str.isalpha, text)).items():
        found = script(letter)
        counts[found] += times * _DENSE if found in UNSPACED else times
    if "kana" in counts:  # Japanese, which has Chinese characters as well
        counts["kana"] += counts.pop("han", 0)
    return max(counts, key=lambda name: counts[name], default="")


def language(words: Collection[str], script: str) -> str:
    """Of a text with these words, in lower case. Empty where it cannot be told."""
    if script not in {"latin", "cyrillic"}:
        return script
    counts = Counter(chain.from_iterable([_LANGUAGES[word] for word in words if word in _LANGUAGES]))
    best = max(_COMMON, key=lambda name: counts[name])
    return best if counts[best] >= _LEAST else ""


def article(word: str, language: str) -> bool:
    """Whether a word of another language than English may as well be left out."""
    return word in _ARTICLES.get(language, ())
