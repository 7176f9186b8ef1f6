"""Words and phrases that tell what a prompt asks for, and the units that follow a number.

Every group becomes two feature columns: how often its words occur in the whole prompt, and
how often near its edges, where instructions usually stand. A phrase is at most three tokens.
"""

from __future__ import annotations


def _entries(text: str) -> tuple[str, ...]:
    """Words apart by spaces, then phrases apart by bars."""
    words, *phrases = text.split("|")
    return (*words.split(), *(phrase.strip() for phrase in phrases))


LEXICON: dict[str, tuple[str, ...]] = {
    "brief": _entries(
        "brief briefly concise concisely short shorter succinct succinctly quick quickly tldr "
        "simply only just single one-line | in short | one word | one line | one sentence | a "
        "sentence | a few | no more than"
    ),
    "detailed": _entries(
        "detailed detail details comprehensive thorough thoroughly elaborate extensive "
        "extensively long complete full fully deep expand every | in depth | in detail | as many "
        "| at least"
    ),
    "list": _entries(
        "list lists bullet bullets bulleted enumerate top ways ideas tips items examples "
        "suggestions recommendations reasons outline numbered multiple several | pros and cons"
    ),
    "table": _entries("table tables column columns row rows csv spreadsheet markdown chart"),
    "json": _entries("json yaml xml schema toml latex format formatted"),
    "code": _entries(
        "code function program script implement python java javascript typescript sql html css "
        "c++ bash regex algorithm class method api rust golang php ruby excel query component"
    ),
    "repair": _entries(
        "fix bug bugs error errors debug correct corrected incorrect wrong failed fails exception "
        "refactor improve issue"
    ),
    "math": _entries(
        "calculate compute solve equation equations integral sum probability number total percent "
        "percentage average ratio rate cost costs price area value | how many | how much | how "
        "long | how far | find the"
    ),
    "proof": _entries("prove proof theorem lemma derive derivation show | show that"),
    "translate": _entries(
        "translate translation translated spanish french german chinese japanese italian russian "
        "portuguese arabic korean hindi latin english"
    ),
    "stepwise": _entries(
        "step steps reasoning reason think explanation | step by step | chain of thought | show "
        "your work"
    ),
    "choice": _entries(
        "options option choose select choices which correct following best | which of | of the "
        "following | multiple choice"
    ),
    "yes_no": _entries("true false yes no whether is are does can | or not | true or false"),
    "create": _entries("write compose draft create generate make design develop produce"),
    "document": _entries(
        "essay article blog post story novel chapter speech letter email report paper review "
        "proposal scene dialogue conversation description introduction"
    ),
    "verse": _entries("poem haiku limerick song lyrics verse sonnet rap joke tweet slogan"),
    "rewrite": _entries(
        "summarize summarise summary paraphrase rewrite rephrase edit shorten revise simplify "
        "convert transform reword grammar sentence sentences"
    ),
    "classify": _entries(
        "classify categorize label sentiment identify extract detect determine name choose "
        "category title answer match find"
    ),
    "explain": _entries(
        "explain describe discuss compare contrast analyze analyse evaluate justify difference "
        "differences elaborate overview meaning"
    ),
    "wh": _entries("what who whom whose when where which"),
    "why_how": _entries("why how | how to | how do | how can | how does"),
    "role": _entries(
        "act pretend imagine roleplay persona assistant character expert respond | you are | act "
        "as | i want you | your task"
    ),
    "plan": _entries(
        "plan strategy itinerary recipe guide tutorial instructions schedule roadmap syllabus "
        "agenda lesson workout ingredients"
    ),
    "tool": _entries(
        "functions parameters properties required description type default enum tool tools "
        "argument arguments"
    ),
    "example": _entries(
        "example input output expected given sample case | test case | for example | here is | "
        "here are"
    ),
    "code_words": _entries(
        "def return import if for while else elif self in range len print int str vector public "
        "static void new null none append max min"
    ),
    "logic": _entries(
        "if each all let suppose assume given statement statements argument premise imply logical "
        "symbolization"
    ),
    "law": _entries(
        "court law plaintiff defendant contract statute sued jury constitution crime attorney "
        "buyer seller landlord evidence"
    ),
    "physics": _entries(
        "velocity force mass energy temperature pressure voltage current charge field wavelength "
        "friction heat gas electron acid reaction solution mol kg cm kj circuit density speed"
    ),
    "finance": _entries(
        "price cost interest stock market demand supply profit revenue tax bond shares firm "
        "investment income dollars annual"
    ),
    "polite": _entries("please thanks thank hello hi hey | can you | could you"),
}

UNITS: dict[str, tuple[str, ...]] = {
    "words": _entries("word words"),
    "characters": _entries("character characters letters"),
    "sentences": _entries("sentence sentences line lines"),
    "paragraphs": _entries("paragraph paragraphs pages page chapters stanzas verses"),
    "items": _entries(
        "points bullets bullet items examples ideas ways steps reasons tips questions things "
        "names titles options suggestions facts strategies topics keywords benefits types "
        "features factors recommendations books movies songs tweets headlines"
    ),
    "minutes": _entries("minute minutes hour hours day days week weeks"),
}

NUMBER_WORDS: dict[str, float] = {
    word: float(value)
    for value, word in enumerate(
        _entries("zero one two three four five six seven eight nine ten eleven twelve")
    )
} | {"fifteen": 15.0, "twenty": 20.0, "thirty": 30.0, "fifty": 50.0, "hundred": 100.0}
