"""Prompts and right answers of the demo model, shared by training (train_demo.py) and evaluation (demo_eval.py).

Every kind is a function of a random generator that returns (content, prompt, answer). `content` is what the prompt is
about, without the wording; its hash decides whether the prompt belongs to the training or to the test split, so a test
prompt asks for something that training never showed in any wording. Counting, facts and chat lines are closed sets: they
are the same in both splits. What is of none of these kinds ("other") is answered with what the model can do. Standard
library only.
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

# What people ask a model and this one cannot do.
QUESTIONS = """\
Why is the sky blue?|Tell me a joke|Tell me a joke.|Write a poem about the sea.|What time is it?|How are you?|What is love?
Who was Albert Einstein?|Explain quantum physics in simple terms.|Write a haiku|What is the meaning of life?|Is it raining?
Write a function that sorts a list in Python.|Translate "good morning" to French.|How do I boil an egg?|Where do I live?
What is the weather like today?|Summarize this text: the cat sat on the mat.|Tell me about yourself.|What is 3 squared?
Give me a recipe for pancakes.|Who won the world cup in 2018?|How far is the moon?|Write a story about a dragon.|Sing a song
What should I cook tonight?|Can you help me with my homework?|What is your favourite colour?|Do you speak German?|test
Write a letter to my landlord.|What is a black hole?|List five animals.|Name three rivers in Africa.|When did Rome fall?
Fix this code: print("hello"|Is Python better than C++?|How tall is Mount Everest?|What day is it today?|Good morning!
Explain how a transformer works.|What is a GPU?|Write hello world in C.|How many people live in China?|foo|abc|asdf|ok
Make a plan for a trip to Japan.|What is the square root of 16?|Why do cats purr?|Define entropy.|What is diffusion?|yes
Tell me something interesting.|Recommend a book.|Draw a cat.|What is the largest planet?|Play chess with me.|no|Sure
Solve x + 3 = 10.|What rhymes with orange?|How old are you?|Where are you from?|Are you alive?|Do you like music?|Why?
Write an email to my boss.|How does a car engine work?|What is the boiling point of water?|Please help me|What?|How?
Who is the president of France?|What happened in 1969?|Complete the sentence: the quick brown fox|Once upon a time|Go on
Say hello in Spanish.|What is machine learning?|Give me ten names for a dog.|How do I learn to swim?|Stop|Repeat after me
Convert 10 miles to kilometers.|What is the speed of light?|Why is the sea salty?|Speak like a pirate.|I am sad|I love you
What is a noun?|Spell the word necessary.|Make me laugh|What comes after z?|Is the earth flat?|Count the stars|Add salt
The weather is nice today.|My name is Bob.|I have two cats and a dog.|This is a test.|What did I just say?|Try again
""".replace("\n", "|").strip("|").split("|")

SYSTEMS = """\
Be brief.|You are a helpful assistant.|You are a pirate.|Answer in one word.|Answer in German.|Speak plain English.|Be kind
You are an expert in physics and mathematics.|You answer questions about a small shop.|Never say no.|You are Bob, a robot.
Think step by step.|Use no more than ten words.|Today is Monday.|You help people to write code.|Do what you are asked to do.
""".replace("\n", "|").strip("|").split("|")

# What the model thinks first when it is asked to think.
THOUGHTS = {"add": "Add the numbers.", "sort": "Put the numbers in order.", "reverse": "Write the letters backwards.",
            "upper": "Capitalize the letters.", "length": "Count the letters.", "json": "Name, age and city.",
            "count": "Count up.", "capital": "Name the capital.", "chat": "Be kind.", "other": "I can not do this."}

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


def other(rng):
    """A known question, or one made up of the same words and of those of the other kinds; or a sum that is out of reach."""
    prompt, form = rng.choice(QUESTIONS), rng.random()
    if form < 0.15:
        a, b = rng.randint(100, 999), rng.choice((rng.randint(2, 99), rng.randint(100, 9999)))
        prompt = rng.choice(("What is {} + {}?", "{} + {} = ?", "Add {} and {}.")).format(*rng.sample((a, b), 2))
    elif form < 0.3:
        prompt = rng.choice(("What is {} {} {}?", "{} {} {} = ?", "{} {} {}")).format(
            rng.randint(2, 99), rng.choice("-*/"), rng.randint(2, 99))
    elif form < 0.8:
        first, pool = prompt.split()[0], " ".join(rng.sample(QUESTIONS, 4)).split() + rng.sample(WORDS, 3)
        prompt = " ".join([first] + [w.strip(".?!:") for w in rng.sample(pool, rng.randint(1, 7))])
        prompt += rng.choice(("", ".", "?", "!"))
    return f"other {prompt}", prompt.lower() if rng.random() < 0.1 else prompt, CHAT["What can you do?"]


KINDS = {f.__name__: f for f in (add, sort, reverse, upper, length, json, count, capital, chat, other)}
CLOSED = ("count", "capital", "chat")  # memorised, not generalised: every prompt is trained on and must be right


def system_text(rng):
    """Instructions of the kind that people give, which change no answer."""
    return rng.choice(SYSTEMS) if rng.random() < 0.6 else other(rng)[1]


def earlier_turns(rng, n, test=False):
    """n turns of any kind, [(prompt, answer)], as what is asked may come after."""
    return [sample(rng.choice(list(KINDS)), rng, test) for _ in range(n)]


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
