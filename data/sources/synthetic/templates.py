"""Prompt templates of the synthetic corpus, each with the answer length that it asks for.

A template draws a prompt and says how long an answer to *this* prompt would be: what is counted
(items, sentences, methods, steps), in what format, for whom. That length is a median; noise and
tails are added in `synthetic.py`. Token figures were set by eye to resemble answers of chat models
(a sentence about 26 tokens, a bullet 32, a word 1.4, a line of code 11).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from lengthwise.data.sources.synthetic import words as w
from lengthwise.data.sources.synthetic.words import words

SENTENCE, BULLET, WORD, CODE_LINE = 26.0, 32.0, 1.4, 11.0

_SUBJECTS, _ASPECTS, _AUDIENCES = words(w.SUBJECTS), words(w.ASPECTS), words(w.AUDIENCES)
_LISTABLE, _WRITINGS, _TONES = words(w.LISTABLE), words(w.WRITINGS), words(w.TONES)
_CITIES, _PEOPLE, _COMPANIES, _GOODS = map(words, (w.CITIES, w.PEOPLE, w.COMPANIES, w.GOODS))
_LANGUAGES, _CODE_LANGUAGES = words(w.LANGUAGES), words(w.CODE_LANGUAGES)
_FUNCTIONS, _CLASSES, _METHODS = words(w.FUNCTION_GOALS), words(w.CLASS_GOALS), words(w.METHODS)
_REVIEWS, _LABELS, _THEOREMS = words(w.SENTIMENT_TEXTS), words(w.LABEL_SETS), words(w.THEOREMS)
_TOOLS = list(w.TOOLS)
_CODE_FACTOR = dict(
    zip(_CODE_LANGUAGES, (1.0, 1.05, 1.45, 1.25, 1.3, 1.4, 1.15, 0.6, 0.9, 1.35), strict=True)
)


@dataclass(frozen=True, slots=True)
class Draft:
    """A prompt and the law of its answer's length.

    `median_tokens` and `sigma` are those of a log-normal, `runaway` the probability that the
    answer loops or wanders instead; `subject` names the question, shared by its variants.
    """

    task: str
    subject: str
    prompt: str
    median_tokens: float
    sigma: float
    runaway: float = 0.0


def explain(rng: Random) -> Draft:
    """Chat: explain a subject, at a depth and for an audience."""
    subject, aspect = rng.choice(_SUBJECTS), rng.choice(_ASPECTS)
    scope, tokens = rng.choice(
        (
            ("", 330.0),
            (" briefly", 110.0),
            (" in one paragraph", 125.0),
            (" in detail", 620.0),
            (" step by step", 430.0),
            (" with a worked example", 480.0),
            (" as if in a short lecture", 560.0),
        )
    )
    audience = rng.choice(("", "", f" to {rng.choice(_AUDIENCES)}"))
    if audience.endswith(("ten-year-old", "manager")):
        tokens *= 0.75
    prompt = rng.choice(
        (
            f"Explain {subject}{audience}{scope}. Focus on {aspect}.",
            f"Can you explain{scope} {aspect} when it comes to {subject}{audience}?",
            f"I am reading about {subject}. Tell me{scope} about {aspect}{audience}.",
            f"Describe{scope} {subject} and {aspect}{audience}.",
        )
    )
    return Draft("chat_explain", subject, prompt, tokens * lean(subject), 0.33)


def listing(rng: Random) -> Draft:
    """Chat: a counted list, in bullets, names only, or with a sentence each."""
    subject, things = rng.choice(_SUBJECTS), rng.choice(_LISTABLE)
    count = rng.choice((3, 4, 5, 5, 6, 7, 8, 10, 10, 12, 15, 20))
    style, each = rng.choice(
        (
            ("as bullets", BULLET),
            ("names only, one per line", 9.0),
            ("with one sentence on each", SENTENCE + 12),
            ("with a short paragraph on each", 78.0),
            ("as a numbered list", BULLET),
            ("in a table with two columns", 30.0),
        )
    )
    what = things.format(subject)
    prompt = rng.choice(
        (
            f"List {count} {what}, {style}.",
            f"Give me {count} {what}. Format: {style}.",
            f"I need {count} {what} ({style}).",
            f"What are {count} {what}? Please answer {style}.",
        )
    )
    return Draft("chat_list", f"{things}{subject}", prompt, 18 + count * each, 0.2)


def writing(rng: Random) -> Draft:
    """Chat: a text of a stated or an open length."""
    kind, tone, subject = rng.choice(_WRITINGS), rng.choice(_TONES), rng.choice(_SUBJECTS)
    amount = rng.choice((40, 60, 80, 100, 120, 150, 200, 250, 300, 400, 500, 700))
    sentences = rng.choice((1, 2, 3, 4, 5, 6, 8, 10))
    limit, tokens, sigma = rng.choice(
        (
            (f" in about {amount} words", amount * WORD, 0.13),
            (f" of at most {amount} words", amount * WORD * 0.85, 0.16),
            (f" in exactly {sentences} sentence{'s'[: sentences > 1]}", sentences * SENTENCE, 0.14),
            ("", {"a limerick": 60.0, "a poem": 190.0, "a song": 330.0}.get(kind, 420.0), 0.38),
        )
    )
    who = f"{rng.choice(_PEOPLE)} from {rng.choice(_CITIES)}"
    prompt = rng.choice(
        (
            f"Write {kind} about {subject}{limit}. Use a {tone} tone.",
            f"Please write {kind}{limit} in which {who} discovers {subject}. Tone: {tone}.",
            f"Act as {who}. Compose {kind}{limit} on {subject}, {tone} in style.",
        )
    )
    return Draft("chat_writing", f"{kind}{subject}", prompt, tokens, sigma)


def passage_work(rng: Random) -> Draft:
    """Chat: summarise or translate a passage given in the prompt."""
    sentences = rng.choice((3, 4, 5, 6, 8, 10, 14, 18))
    text = passage(rng, sentences)
    tokens = len(text.split()) * 1.45
    if rng.random() < 0.5:
        language = rng.choice(_LANGUAGES)
        factor = 1.9 if language in ("Japanese", "Korean", "Swahili", "Turkish") else 1.35
        order = rng.choice((f"Translate into {language}:", f"Put this text into {language}."))
        return Draft("translation", text, f"{order}\n\n{text}", tokens * factor, 0.1)
    count = rng.choice((1, 1, 2, 3, 4, 5))
    unit, each = rng.choice((("sentence", SENTENCE + 4), ("bullet point", BULLET - 6)))
    order = f"Summarise the following text in {count} {unit}{'s'[: count > 1]}."
    prompt = f"{order}\n\n{text}" if rng.random() < 0.6 else f"{text}\n\n{order}"
    return Draft("summary", text, prompt, min(count * each, tokens), 0.17)


def code_function(rng: Random) -> Draft:
    """Code: one function, with optional parts that lengthen the answer."""
    goal, language = rng.choice(_FUNCTIONS), rng.choice(_CODE_LANGUAGES)
    lines = 12 * lean(goal, 0.35) * _CODE_FACTOR[language]
    parts = rng.sample(
        (
            (" Include a docstring.", 4.0, 0.0),
            (" Add type annotations.", 1.0, 0.0),
            (" Write three unit tests.", 16.0, 0.0),
            (" Explain the code afterwards.", 0.0, 150.0),
            (" Discuss its time and space complexity.", 0.0, 95.0),
            (" Handle invalid input with clear errors.", 7.0, 0.0),
            (" Show an example call.", 4.0, 12.0),
            (" Return only the code.", 0.0, -45.0),
        ),
        rng.choice((0, 0, 1, 1, 2, 3)),
    )
    tokens = 60 + (lines + sum(p[1] for p in parts)) * CODE_LINE + sum(p[2] for p in parts)
    opening = rng.choice(
        (
            f"Write a {language} function that {goal}.",
            f"In {language}, implement a function that {goal}.",
            f"I need {language} code that {goal}.",
            f"How would you write, in {language}, a function that {goal}?",
        )
    )
    return Draft("code_function", goal, opening + "".join(p[0] for p in parts), tokens, 0.27)


def code_class(rng: Random) -> Draft:
    """Code: a class with named methods."""
    thing, language = rng.choice(_CLASSES), rng.choice(_CODE_LANGUAGES[:7])
    methods = rng.sample(_METHODS, rng.choice((2, 3, 3, 4, 5, 6, 8)))
    tests = rng.random() < 0.25
    lines = (9 + 8.5 * len(methods)) * _CODE_FACTOR[language] * lean(thing)
    tokens = 50 + (lines * (1.6 if tests else 1.0)) * CODE_LINE
    prompt = rng.choice(
        (
            f"Implement a {language} class for {thing} with the methods {', '.join(methods)}.",
            f"Design {thing} as a {language} class. Required methods: {', '.join(methods)}.",
        )
    )
    prompt += " Add unit tests for every method." if tests else ""
    return Draft("code_class", thing, prompt, tokens, 0.26)


def code_repair(rng: Random) -> Draft:
    """Code: a broken snippet to mend; the answer repeats the code."""
    name = f"{rng.choice(_METHODS)}_{rng.choice(('items', 'rows', 'orders', 'users', 'prices'))}"
    count = rng.choice((1, 1, 2, 3, 4, 6))
    blocks, total = [], 0
    for i in range(count):
        body = rng.choice(_BROKEN).format(name=f"{name}_{i}" if count > 1 else name)
        blocks.append(body)
        total += body.count("\n") + 1
    style, extra = rng.choice(
        (
            ("Fix the bugs and return the whole code.", 30),
            ("Find the bugs, fix them and explain each change.", 60 + 45 * count),
            ("What is wrong here? Give the corrected version.", 70),
            ("Fix the bugs. Reply with the code only.", 5),
        )
    )
    error = rng.choice(("", "", "It fails with an IndexError. ", "The result is off by one. "))
    prompt = f"{error}{style}\n\n```python\n" + "\n\n".join(blocks) + "\n```"
    return Draft("code_repair", "".join(blocks), prompt, total * CODE_LINE + extra, 0.2)


def tool_call(rng: Random) -> Draft:
    """Agent step: pick tools and fill their arguments, as JSON."""
    names = rng.sample(_TOOLS, rng.choice((2, 3, 4, 6)))
    wanted = names[: rng.choice((1, 1, 1, 1, 2, 3))]
    schema = "\n".join(
        f'{{"name": "{n}", "parameters": {{{", ".join(f"{p!r}: string" for p in w.TOOLS[n])}}}}}'
        for n in sorted(names)
    )
    person, city = rng.choice(_PEOPLE), rng.choice(_CITIES)
    wishes = " and then ".join(
        f"{n.replace('_', ' ')} for {person} in {city}"
        f" ({', '.join(f'{p} {rng.randint(1, 900)}' for p in w.TOOLS[n])})"
        for n in wanted
    )
    order = rng.choice(
        (
            "Answer with the JSON of the calls only.",
            "Reply with one JSON array of tool calls.",
            "Call the right tools; output JSON and nothing else.",
        )
    )
    prompt = f"You have these tools:\n{schema}\n\nUser: Please {wishes}.\n{order}"
    tokens = 6 + sum(12 + 9 * len(w.TOOLS[n]) for n in wanted)
    return Draft("tool_call", f"{sorted(wanted)}{person}{city}", prompt, tokens, 0.14)


def maths(rng: Random) -> Draft:
    """Reasoning: a word problem whose number of steps drives the length; now and then a loop."""
    steps = rng.choice((1, 2, 2, 3, 3, 4, 5, 6, 8))
    person, goods, company = rng.choice(_PEOPLE), rng.choice(_GOODS), rng.choice(_COMPANIES)
    start = rng.randint(12, 900)
    changes = [
        rng.choice(_CHANGES).format(n=rng.randint(2, 60), who=rng.choice(_PEOPLE), goods=goods)
        for _ in range(steps)
    ]
    text = f"{person} runs a store of {company} with {start} {goods}. " + " ".join(changes)
    question = rng.choice(("How many are left?", f"How many {goods} are in the store now?"))
    style, factor = rng.choice(
        (
            ("", 1.0),
            (" Think step by step.", 1.25),
            (" Show all your work and check the result in a second way.", 2.1),
            (" Give the final number after a short calculation.", 0.7),
        )
    )
    tokens = (55 + 42 * steps) * factor
    return Draft("maths", text, f"{text} {question}{style}", tokens, 0.32, 0.004 * steps)


def puzzle(rng: Random) -> Draft:
    """Reasoning: a logic puzzle or proof; long, widely spread, runs away most often."""
    if rng.random() < 0.45:
        number = rng.choice((2, 3, 5, 6, 7, 8, 10, 11, 13, 15, 17, 19, 23))
        theorem = rng.choice(_THEOREMS)
        claim = theorem.format(number, number)
        how, factor = rng.choice((("Prove that", 1.0), ("Prove or disprove:", 1.5)))
        rigour, more = rng.choice(
            ((".", 1.0), (", in full rigour.", 1.6), (", in a few lines.", 0.5))
        )
        tokens = 380 * factor * more * lean(theorem, 0.4)
        return Draft("proof", claim, f"{how} {claim}{rigour}", tokens, 0.5, 0.05 * factor)
    people = rng.sample(_PEOPLE, rng.choice((3, 4, 5, 6)))
    places = rng.sample(_CITIES, len(people))
    clues = [
        rng.choice(
            ("{} does not live in {}.", "{} has never been to {}.", "{} lives north of {}.")
        ).format(person, rng.choice(places))
        for person in people
        for _ in range(rng.choice((1, 1, 2)))
    ]
    style, factor = rng.choice(
        ((" Explain your reasoning.", 1.0), (" Try every case.", 1.9), ("", 0.9))
    )
    prompt = (
        f"{', '.join(people)} live in {', '.join(places)}, one person in each city. "
        f"{' '.join(clues)} Who lives where?{style}"
    )
    tokens = (90 + 38 * len(clues)) * factor * len(people) / 3.5
    return Draft("puzzle", prompt, prompt, tokens, 0.45, 0.012 * len(people))


def classify(rng: Random) -> Draft:
    """Short answer: a label per text, with or without a reason."""
    labels, goods = rng.choice(_LABELS), rng.choice(_GOODS)
    count = rng.choice((1, 1, 1, 2, 3, 5, 8))
    texts = [rng.choice(_REVIEWS).format(rng.choice(_GOODS)) for _ in range(count)]
    style, each = rng.choice(
        (
            ("Answer with the label only.", 4.0),
            ("Give the label and a reason in one sentence.", SENTENCE + 5),
            ('Reply as JSON: {"label": ..., "confidence": ...}.', 19.0),
        )
    )
    body = "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1)) if count > 1 else texts[0]
    order = rng.choice(("Classify as", "Decide for each message whether it is", "Label as"))
    prompt = f"{order} {labels}. {style}\n\nSender: a buyer of {goods}\n{body}"
    return Draft("classification", body, prompt, 1 + count * each, 0.12)


def extract(rng: Random) -> Draft:
    """Short answer: fields of a passage, as JSON or in a phrase."""
    text = passage(rng, rng.choice((1, 2, 3, 5)))
    fields = rng.sample(
        ("person", "company", "city", "year", "product", "amount"), rng.randint(1, 5)
    )
    style, base, each = rng.choice(
        ((" as JSON", 5.0, 10.0), ("", 8.0, 9.0), (", one per line", 2.0, 7.0))
    )
    prompt = f"Extract the {', '.join(fields)} from this text{style}.\n\n{text}"
    return Draft("extraction", text, prompt, base + each * len(fields), 0.13)


TASKS: dict[str, tuple[tuple[Callable[[Random], Draft], float], ...]] = {
    "chat": ((explain, 0.12), (listing, 0.09), (writing, 0.09), (passage_work, 0.06)),
    "code": ((code_function, 0.11), (code_class, 0.06), (code_repair, 0.07)),
    "agent_step": ((tool_call, 0.12),),
    "reasoning": ((maths, 0.10), (puzzle, 0.08)),
    "short_answer": ((classify, 0.06), (extract, 0.04)),
}
"""Class -> its templates, each with its share of the corpus."""


def passage(rng: Random, sentences: int) -> str:
    """A few made-up news sentences."""
    return " ".join(
        rng.choice(_NEWS).format(
            who=rng.choice(_PEOPLE),
            company=rng.choice(_COMPANIES),
            city=rng.choice(_CITIES),
            goods=rng.choice(_GOODS),
            n=rng.randint(3, 950),
            year=rng.randint(1987, 2025),
        )
        for _ in range(sentences)
    )


def lean(key: str, spread: float = 0.25) -> float:
    """A fixed factor around 1 for a subject: some need more words than others."""
    unit = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big") / 2.0**32
    return math.exp(spread * 3.46 * (unit - 0.5))  # uniform with standard deviation `spread`


_NEWS = (
    "In {year}, {company} opened a plant in {city} that makes {goods}.",
    "{who}, who leads {company}, said sales of {goods} had grown by {n} percent.",
    "The office in {city} employs {n} people and was founded by {who}.",
    "After a fire in {year} the warehouse in {city} stood empty, until {company} bought it.",
    "{who} moved to {city} and now repairs {goods} for a living.",
    "Critics say that {company} pays its {n} suppliers late, which {who} denies.",
    "A survey of {n} buyers found that most would choose {goods} again.",
    "The council of {city} plans to spend {n} thousand on {goods} before the winter.",
    "{company} and {city} signed an agreement on {goods} in {year}.",
)
_CHANGES = (
    "{who} buys {n} of them.",
    "A delivery brings {n} boxes of 12 {goods} each.",
    "Then {n} percent of the {goods} are sold.",
    "{who} returns {n} {goods} that were faulty.",
    "The stock is split evenly between {n} shelves and one shelf is given away.",
    "Each of {n} customers takes 3 {goods}.",
    "At night {n} more {goods} arrive, but a third of them are damaged.",
)
_BROKEN = (
    "def {name}(values):\n    total = 0\n    for i in range(1, len(values)):\n"
    "        total += values[i]\n    return total / len(values)",
    "def {name}(rows, key):\n    result = {{}}\n    for row in rows:\n"
    "        if row[key] in result:\n            result[row[key]] = [row]\n        else:\n"
    "            result[row[key]].append(row)\n    return result",
    "def {name}(text):\n    words = text.split(' ')\n    counts = dict()\n    for word in words:\n"
    "        counts[word] += 1\n    return sorted(counts)[:10]",
    "def {name}(a, b):\n    while a and b:\n        if a[0] < b[0]:\n            yield a.pop()\n"
    "        else:\n            yield b.pop()",
    "def {name}(items, target):\n    low, high = 0, len(items)\n    while low < high:\n"
    "        middle = (low + high) / 2\n        if items[middle] < target:\n"
    "            low = middle\n        else:\n            high = middle\n    return low",
    "def {name}(path):\n    file = open(path)\n    lines = file.read()\n    for line in lines:\n"
    "        if line.startswith('#'):\n            lines.remove(line)\n    return lines",
)
