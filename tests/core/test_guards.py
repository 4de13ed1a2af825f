"""core.semantic.guards: for each guard, pairs that it must refuse, and pairs that none may."""

import pytest

from sidecar.core.semantic.guards import GUARDS, objection, unmatchable
from sidecar.core.semantic.traits import traits

REFUSED = {
    "language": """
        Wie hoch ist der Turm in Pisa? | How high is the tower in Pisa?
        ¿Dónde está la biblioteca? | Where is the library?
        Où est la gare de Lyon ? | ¿Dónde está la estación de Lyon?
        Как сварить борщ? | How do I cook borscht?
        Як приготувати борщ і що для цього треба? | Как приготовить борщ и что для этого надо?
        東京の天気はどうですか | 东京的天气怎么样
    """,
    "length": """
        Is this right? | Is this right? I have tried it three times on two machines, with the network on and off, and each time it came out in another way
    """,
    "code": """
        What does `ls -l` print? | What does `ls -a` print?
        What does ```x = f(1)``` do? | What does ```x = f(2)``` do?
        Explain print(a == b) | Explain print(a != b)
        What is wrong with swap(left, right)? | What is wrong with swap(right, left)?
        Summarise https://example.org/a | Summarise https://example.org/b
        Draft a letter to ann@example.org | Draft a letter to bob@example.org
        May I delete /var/log? | May I delete /var/lib?
        May I delete C:\\Temp? | May I delete D:\\Temp?
        Is ~/.profile read? | Is ~/.bashrc read?
    """,
    "quoted": """
        What does "carpe diem" mean? | What does "memento mori" mean?
        What does 'carpe diem' mean? | What does 'memento mori' mean?
        What does “carpe diem” mean? | What does «memento mori» mean?
        Who said „to be“? | Who said „not to be“?
    """,
    "versions": """
        Is Python 3.10 slow? | Is Python 3.1 slow?
        Is it fixed in v2.4? | Is it fixed in v2.5?
        What is new in version 7? | What is new in version 8?
        How do I install 1.2.3 of it? | How do I install 1.2.4 of it?
    """,
    "dates": """
        What happened in January? | What happened in February?
        Is the shop open on Monday? | Is the shop open on Tue?
        Wake me at 5 pm | Wake me at 5 am
        Wake me at 17:30 | Wake me at 17:45
        What was on 2023-05-03? | What was on 2023-05-04?
        What was on May 3, 2023? | What was on June 3, 2023?
        What was on 3/5/2023? | What was on 5/3/2023?
        Will it rain tomorrow? | Did it rain yesterday?
    """,
    "numbers": """
        Is 7 a prime? | Is 9 a prime?
        Is seven a prime? | Is nine a prime?
        How many is 10,000 people? | How many is 1,000 people?
        Can I live on 2k a month? | Can I live on 3k a month?
        Who was king in 1820? | Who was king in 1830?
        What were the 1980s like? | What were the 1990s like?
        Is -5 a solution? | Is 5 a solution?
        What is 15% of 80? | What is 20% of 80?
        What is 1/2 of it? | What is 1/4 of it?
        What is 2+2? | What is 2*2?
        Who is the 3rd in line? | Who is the fourth in line?
        What does the A4 cost? | What does the A6 cost?
        Is 4G any good? | Is 5G any good?
        Is it under $5 M? | Is it under $5?
        ٥ أو لا | ٦ أو لا
    """,
    "units": """
        How far is 5 km? | How far is 5 miles?
        Is 20 mg too much? | Is 20 ml too much?
        Is $50 enough? | Is €50 enough?
        Is it due in 3 days? | Is it due in 3 weeks?
        Is 30 °C warm? | Is 30 °F warm?
        Is 30 degrees Celsius warm? | Is 30 degrees Fahrenheit warm?
        Turn 10 metres into feet | Turn 10 feet into metres
    """,
    "negation": """
        Is it safe to swim here? | Is it not safe to swim here?
        Should I go? | Shouldn't I go?
        Why does it work? | Why doesnt it work?
        Who has ever won? | Who has never won?
        Can I drive with a licence? | Can I drive without a licence?
        Is there an alcoholic beer? | Is there a non-alcoholic beer?
        Why am I able to sleep? | Why am I unable to sleep?
        What may I not eat but drink? | What may I eat but not drink?
    """,
    "opposites": """
        What should I do before a run? | What should I do after a run?
        Should I stretch before or after it? | Should I stretch before it?
        What is the best month? | What is the worst month?
        How do I turn the lamp on? | How do I turn the lamp off?
        Is he a nurse? | Is she a nurse?
        Who scored most? | Who scored least?
    """,
    "question": """
        Why do bees dance? | How do bees dance?
        When does it open? | Where does it open?
        Do bees dance? | Why do bees dance?
        How many bees dance? | How do bees dance?
        Who found it? | When was it found?
        Who saw Ann? | Who did Ann see?
        Can you tell me why it rains? | Can you tell me when it rains?
    """,
    "modality": """
        Is voting a duty? | Should voting be a duty?
    """,
    "tense": """
        Who is the mayor? | Who was the mayor?
        How much does a loaf cost? | How much did a loaf cost?
    """,
    "person": """
        What is your name? | What is my name?
        Where is their office? | Where is our office?
    """,
    "order": """
        How is Messi better than Ronaldo | How is Ronaldo better than Messi
        how is messi better than ronaldo | how is ronaldo better than messi
        Does a dog fear a wolf? | Does a wolf fear a dog?
        How do I get from Turin to Genoa? | How do I get from Genoa to Turin?
        Is red wine after white wine wise? | Is white wine after red wine wise?
        What do Danes think of Swedes? | What do Swedes think of Danes?
        Is my father's brother rich? | Is my brother's father rich?
        We have 2 cats and 3 dogs | We have 3 cats and 2 dogs
        Is it cheaper to rent than to buy? | Is it cheaper to buy than to rent?
        狗咬人 | 人咬狗
    """,
    "names": """
        What is the capital of Chad? | What is the capital of Mali?
        Are hotels dear in Oslo? | Are hotels dear?
        Why is IBM old? | Why is NASA old?
        What does getElement return? | What does getElements_all return?
        Is it hot in the US? | Is it hot in the UK?
        Do I lack vitamin B? | Do I lack vitamin D?
        What is C++? | What is C#?
        Is M&S open? | Is H&M open?
    """,
    "words": """
        what is the capital of chad | what is the capital of mali
        Write a poem about cats | Write a poem about owls
        How do I cancel my order? | How do I track my order?
        How do I sort a list? | How do I sort a tuple?
        What does 🦉 mean? | What does 🦊 mean?
        What does @ do? | What does ~ do?
    """,
    "lists": """
        How do I feed cats? | How do I feed cats and owls?
        Is tea healthy? | Is tea or coffee healthy?
        Can I drink and drive? | Can I drink?
    """,
    "restriction": """
        What is a good present? | What is a good present for teenagers?
        how tall are houses | how tall are houses in norway
        How do I pay? | How do I pay by cheque?
    """,
    "wording": """
        Wie alt ist das Haus von Anna? | Wie hoch ist das Haus von Anna?
        Was darf ich vor dem Essen trinken? | Was darf ich nach dem Essen trinken?
        ¿Es seguro comer esto con el niño? | ¿No es seguro comer esto con el niño?
        如何学习中文 | 如何学习日文
        这个药安全吗 | 这个药不安全吗
        как включить этот свет | как выключить этот свет
        كم عمر القمر | كم عمر الشمس
        여기는 어디예요 | 여기는 언제예요
    """,
}
PASSED = {
    "how it is asked": """
        How do I learn to knit? | What is the best way to learn to knit?
        How can one learn to knit? | How should I learn to knit?
        Explain tides | Can you explain tides to me, please?
        Could you tell me how tides work? | How do tides work?
        What's a tide? | What is a tide?
        Is it possible to swim there? | Can I swim there?
        What causes tides? | What is the cause of tides?
        Why isnt it working | Why isn't it working?
        Should I go or not? | Should I go?
        Which are the best knives? | What is the best knife?
        How long does it take to knit a sock? | How much time does it take to knit a sock?
    """,
    "how it is written": """
        what is the capital of norway? | What is the capital of Norway?
        WHAT IS THE CAPITAL OF NORWAY? | What is the capital of Norway?
        What Is The Capital Of Norway? | what is the capital of norway
        How do I start NumPy? | how do i start numpy
        Is the U.S. large? | Is the US large?
        What is a Ph.D.? | What is a PhD?
        How do I e-mail it? | How do I email it?
        What is a café? | What is a cafe?
        How do I use `grep`? | How do I use grep?
        What does “carpe diem” mean? | What does "Carpe Diem" mean?
        What does 'carpe diem' mean? | What does carpe diem mean?
        Which colour is it? | Which color is it?
        Is it Ann's car? | Is it Ann’s car?
        Read http://example.org/a | Read https://www.example.org/a/
        Who are the Joneses? | Who are the Joneses
    """,
    "numbers and dates": """
        Is 10,000 enough? | Is 10000 enough?
        Is 10k enough? | Is 10 thousand enough?
        Is 1.5 million enough? | Is 1500000 enough?
        Is twenty-five enough? | Is 25 enough?
        Is $5.00 enough? | Is 5 dollars enough?
        Is 5 km far? | Are five kilometres far?
        Is 5 percent much? | Is 5% much?
        Is 30 °C warm? | Is 30 degrees celsius warm?
        Which was the 3rd one? | Which was the third one?
        What was on 2023-05-03? | What was on May 3rd, 2023?
        What was on 25/12/2020? | What was on 25 Dec 2020?
        Are you open at 5 pm? | Are you open at 17:00?
        What about the phone7? | What about the phone 7?
        Does v2.4 fix it? | Does version 2.4 fix it?
    """,
    "inflections and synonyms": """
        How do I buy a bike? | How do I purchase a bicycle?
        Why are kids happy? | Why is a child happy?
        How is a house built? | How are houses built?
        How do I improve my writing quickly? | How do I improve my writing fast?
        Who is the author of it? | Who are the authors of it?
    """,
    "order": """
        Are cats and dogs friends? | Are dogs and cats friends?
        Which is better, tea or coffee? | Which is better, coffee or tea?
        Are there hotels in Rome for families? | Are there hotels for families in Rome?
        What is the name of the dog? | What is the dog's name?
        How do tap water and bottled water differ? | How do bottled water and tap water differ?
        Where is a shop that sells bells? | Where do they sell bells in a shop?
    """,
    "other languages": """
        Wie alt ist das Haus von Anna? | wie alt ist Haus von Anna
        Où est la gare de Lyon ? | où est la gare de lyon
        这个药安全吗？ | 这个药安全
        где находится этот дом? | Где находится этот дом
    """,
}


def table(pairs):
    return [tuple(part.strip() for part in line.split(" | ")) for line in pairs.strip().splitlines()]


def rows(tables):
    return [
        pytest.param(name, *pair, id=f"{name}: {pair[0]}")
        for name, pairs in tables.items()
        for pair in table(pairs)
    ]


@pytest.mark.parametrize(("guard", "a", "b"), rows(REFUSED))
def test_refused(guard, a, b):
    asked, stored = traits(a), traits(b)
    assert GUARDS[guard](asked, stored)
    assert GUARDS[guard](stored, asked)
    assert objection(asked, stored) is not None


@pytest.mark.parametrize(("what", "a", "b"), rows(PASSED))
def test_passed(what, a, b):
    assert objection(traits(a), traits(b)) is None
    assert objection(traits(b), traits(a)) is None


def test_each_guard_has_its_table():
    assert list(REFUSED) == list(GUARDS)


def test_a_guard_that_is_skipped_is_not_asked():
    asked, stored = traits("Is 7 a prime?"), traits("Is 9 a prime?")
    assert objection(asked, stored) == "numbers"
    assert objection(asked, stored, frozenset({"numbers"})) == "words"
    assert objection(asked, stored, frozenset({"numbers", "words"})) is None


@pytest.mark.parametrize("text", ["", " \n\t", "?!", "...", "\u200b", "—"])
def test_what_says_nothing_is_never_matched(text):
    assert unmatchable(text, 10) == "empty"


def test_what_is_too_long_is_never_matched():
    assert unmatchable("a" * 11, 10) == "too_long"
    assert unmatchable("a" * 10, 10) is None
    assert unmatchable(" " * 11, 10) == "too_long"
