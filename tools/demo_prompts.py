"""Prompts and right answers of the demo model, shared by training (train_demo.py) and evaluation (demo_eval.py).

Every kind is a function of a random generator that returns (content, prompt, answer). `content` is what the prompt is
about, without the wording; its hash decides whether the prompt belongs to the training or to the test split, so a test
prompt asks for something that training never showed in any wording. Counting, facts and chat lines are closed sets: they
are the same in both splits. Standard library only.
"""

import hashlib
import random

TEST_SHARE = 10  # one content in 10 is kept for the test split

CAPITALS = {
    "Argentina": "Buenos Aires", "Australia": "Canberra", "Austria": "Vienna", "Belgium": "Brussels",
    "Bolivia": "Sucre", "Brazil": "Brasilia", "Bulgaria": "Sofia", "Canada": "Ottawa",
    "Chile": "Santiago", "China": "Beijing", "Colombia": "Bogota", "Croatia": "Zagreb", "Cuba": "Havana",
    "Cyprus": "Nicosia", "Denmark": "Copenhagen", "Ecuador": "Quito", "Egypt": "Cairo",
    "Estonia": "Tallinn", "Ethiopia": "Addis Ababa", "Finland": "Helsinki", "France": "Paris",
    "Germany": "Berlin", "Ghana": "Accra", "Greece": "Athens", "Hungary": "Budapest",
    "Iceland": "Reykjavik", "India": "New Delhi", "Indonesia": "Jakarta", "Iran": "Tehran",
    "Iraq": "Baghdad", "Ireland": "Dublin", "Italy": "Rome", "Jamaica": "Kingston", "Japan": "Tokyo",
    "Kenya": "Nairobi", "Latvia": "Riga", "Lebanon": "Beirut", "Lithuania": "Vilnius",
    "Luxembourg": "Luxembourg", "Malaysia": "Kuala Lumpur", "Malta": "Valletta", "Mexico": "Mexico City",
    "Morocco": "Rabat", "Nepal": "Kathmandu", "Norway": "Oslo", "Peru": "Lima", "Poland": "Warsaw",
    "Portugal": "Lisbon", "Romania": "Bucharest", "Russia": "Moscow", "Senegal": "Dakar",
    "Serbia": "Belgrade", "Slovakia": "Bratislava", "Slovenia": "Ljubljana", "Spain": "Madrid",
    "Sweden": "Stockholm", "Switzerland": "Bern", "Thailand": "Bangkok", "Turkey": "Ankara",
    "Ukraine": "Kyiv", "Uruguay": "Montevideo", "Vietnam": "Hanoi",
}

CHAT = {
    "Hello": "Hello! How can I help?",
    "Hello!": "Hello! How can I help?",
    "Hi": "Hello! How can I help?",
    "Hi!": "Hello! How can I help?",
    "Who are you?": "I am a small demo model.",
    "What are you?": "I am a small demo model.",
    "What is your name?": "I am a small demo model.",
    "What can you do?": "I can add, sort and count numbers, reverse and capitalize words, name capitals and make JSON.",
    "Help": "I can add, sort and count numbers, reverse and capitalize words, name capitals and make JSON.",
    "Thanks": "You are welcome!",
    "Thank you!": "You are welcome!",
    "Bye": "Goodbye!",
    "Goodbye": "Goodbye!",
}

NAMES = """\
Ann Ben Tom Mia Eva Max Leo Zoe Ida Kim Ada Amy Bob Cara Dan Emma Finn Gina Hana Ivan Jack Kate Liam
Mary Nina Olga Paul Rosa Sam Tina Uma Vera Will Yuki Zara Alan Beth Carl Dora Erik Fay Greta Hugo Ines
Jane Karl Lena Mark Nora Omar Peter Quinn Rita Sara Theo Ursula Victor Wanda Xenia Yara Anna Bruno Clara
David Elena Felix Grace Henry Irene James Laura Maria Oscar Simon Alice Chloe Diana Frank Julia Linda
Martin Robert Sophie Thomas""".split()

CITIES = """\
Oslo Rome Paris Lima Bern Riga Kyiv Cairo Delhi Tokyo Seoul Milan Porto Lyon Nice Turin Graz Basel Ghent
Leeds York Bath Derby Perth Cork Bonn Kiel Essen Mainz Ulm Trier Jena Prague Berlin Madrid London Vienna
Warsaw Athens Dublin Lisbon Moscow Havana Quito Bogota Ottawa Boston Dallas Denver Miami Austin Chicago
Seattle Toronto Sydney Geneva Zurich Munich Hamburg Naples Venice Seville Krakow Bergen Malmo Turku
Tampere Tartu Split Nairobi Accra Dakar Rabat Tunis""".split()

WORDS = """\
water stone river apple bread light green table chair house plant horse tiger zebra mouse snake eagle
piano guitar violin lemon melon grape peach berry onion carrot tomato butter cheese sugar honey pepper
salt milk rice bean corn cat dog bird fish frog bear wolf lion deer goat sheep duck hen cow pig ant bee
fly worm snail spider rabbit monkey camel panda koala robin raven crow owl swan goose red blue black
white brown yellow orange purple pink gray silver gold copper iron steel brick clay sand rock hill
valley forest desert island ocean lake pond stream beach wave storm cloud rain snow wind fire smoke
earth moon star planet comet rocket engine wheel train plane boat ship bike road bridge tower castle
garden window door wall floor roof kitchen bed lamp clock mirror candle pencil paper book letter page
story poem song dance music drum flute happy sad angry brave calm clever kind quick slow strong weak
tall short wide thin heavy soft hard warm cold hot dry wet clean dirty early late young old new fresh
sweet bitter sour spicy plain round flat sharp smooth winter spring summer autumn morning evening night
day week month year today king queen prince knight wizard dragon giant hero pirate doctor nurse teacher
farmer baker pilot sailor painter writer singer player banana cherry walnut almond olive silk wool
cotton linen hat coat shoe glove scarf belt ring crown sword shield arrow hammer nail ladder rope needle
button hand foot head nose mouth ear eye knee elbow finger heart brain bone skin hair tooth lunch dinner
supper picnic cake cookie pasta soup salad pizza noodle game chess card dice puzzle kite doll robot
laser radio phone camera screen cable world hello model planet number letter market street school
village city farm field barn fence gate path trail""".split()

# Letter pairs that the tokenizer joins because "user", "model" and "thought" are words of the chat format. Words that
# show one of them, forwards or backwards, are left out of the spelling tasks: the model sees single letters there.
JOINED = ("us", "su", "od", "do", "gh", "hg")


def is_test(content):
    """True when this content belongs to the test split; depends on the content alone."""
    return hashlib.sha256(content.encode()).digest()[0] * TEST_SHARE < 256


def pseudo_word(rng, low, high):
    """A made-up word that can be pronounced, of low..high letters."""
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    length = rng.randint(low, high)
    is_vowel, word = rng.random() < 0.4, ""
    while len(word) < length:
        word += rng.choice(vowels if is_vowel else consonants)
        is_vowel = rng.random() < (0.15 if is_vowel else 0.85)
    return word


def spelling_word(rng):
    """A word for the spelling tasks: half of them real, half made up, 3 to 7 letters."""
    while True:
        word = rng.choice(WORDS) if rng.random() < 0.5 else pseudo_word(rng, 3, 7)
        if 3 <= len(word) <= 7 and not any(pair in word for pair in JOINED):
            return word


def add(rng):
    a = rng.randint(10, 89)
    b = rng.randint(10, 99 - a)
    prompt = rng.choice(("What is {} + {}?", "{} + {} = ?", "Add {} and {}.")).format(a, b)
    return f"add {min(a, b)} {max(a, b)}", prompt, str(a + b)


def sort(rng):
    numbers = rng.sample(range(10, 100), rng.randint(3, 4))
    prompt = rng.choice(("Sort these numbers: {}", "Sort {}", "Put in order: {}"))
    ordered = ", ".join(map(str, sorted(numbers)))
    return f"sort {ordered}", prompt.format(", ".join(map(str, numbers))), ordered


def reverse(rng):
    word = spelling_word(rng)
    prompt = rng.choice(('Reverse the word "{}".', 'Reverse "{}"', 'Write "{}" backwards.')).format(word)
    return f"reverse {word}", prompt, word[::-1]


def upper(rng):
    word = spelling_word(rng)
    prompt = rng.choice(('Write "{}" in capital letters.', 'Write "{}" in upper case.')).format(word)
    return f"upper {word}", prompt, word.upper()


def length(rng):
    word = spelling_word(rng)
    prompt = rng.choice(('How many letters are in "{}"?', 'How long is the word "{}"?')).format(word)
    return f"length {word}", prompt, str(len(word))


def json(rng):
    name = rng.choice(NAMES) if rng.random() < 0.5 else pseudo_word(rng, 3, 6).capitalize()
    city = rng.choice(CITIES) if rng.random() < 0.5 else pseudo_word(rng, 4, 7).capitalize()
    age = rng.randint(10, 99)
    prompt = rng.choice(("Make JSON: {n} is {a} years old and lives in {c}.", "Make JSON: {n} lives in {c} and is {a}.",
                         "Make JSON: {n}, {a}, from {c}.")).format(n=name, a=age, c=city)
    return f"json {name} {age} {city}", prompt, f'{{"name":"{name}","age":{age},"city":"{city}"}}'


def count(rng):
    last = rng.randint(3, 20)
    prompt = rng.choice(("Count to {}.", "Count from 1 to {}.")).format(last)
    return f"count {last}", prompt, " ".join(map(str, range(1, last + 1)))


def capital(rng):
    country = rng.choice(sorted(CAPITALS))
    prompt = rng.choice(("What is the capital of {}?", "Name the capital of {}.", "Which city is the capital of {}?"))
    return f"capital {country}", prompt.format(country), CAPITALS[country]


def chat(rng):
    prompt = rng.choice(sorted(CHAT))
    return f"chat {prompt}", prompt, CHAT[prompt]


KINDS = {f.__name__: f for f in (add, sort, reverse, upper, length, json, count, capital, chat)}
CLOSED = ("count", "capital", "chat")  # memorised, not generalised: every prompt is trained on and must be right


def sample(kind, rng, test=False):
    """One (prompt, answer) of a kind, from the test split or from the training split."""
    while True:
        content, prompt, answer = KINDS[kind](rng)
        if kind in CLOSED or is_test(content) == test:
            return prompt, answer


def test_set(kind, n, seed=0):
    """Up to n different test prompts of a kind as a list of (prompt, answer), the same list for the same seed."""
    rng, found = random.Random(f"{kind} {seed}"), {}
    for _ in range(50 * n):
        if len(found) == n:
            break
        prompt, answer = sample(kind, rng, test=True)
        found[prompt] = answer
    return list(found.items())


if __name__ == "__main__":
    for name in KINDS:
        for line in test_set(name, 3):
            print(name, *line, sep="\t")
