import re
from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.predictor.features.columns import PromptFeatures
from lengthwise.predictor.features.ngrams import HEAD_TOKENS, count_ngrams
from lengthwise.predictor.features.scan import NEWLINE, combine, encode, scan, word_hash
from lengthwise.predictor.features.structure import (
    KEYS,
    MASKS,
    NUMBERS,
    STRUCTURE_NAMES,
    read_structure,
)
from lengthwise.predictor.features.text import HashedText


def read(prompt: str) -> dict[str, float]:
    out = np.zeros(len(STRUCTURE_NAMES))
    text = encode(prompt)
    read_structure(text, *scan(text), KEYS, MASKS, NUMBERS, out)
    return dict(zip(STRUCTURE_NAMES, out, strict=True))


def count(value: float) -> float:
    """The count behind a log(1 + count) column."""
    return round(float(np.expm1(value)), 6)


@pytest.mark.parametrize(
    ("prompt", "column", "expected"),
    [
        ("Write a poem in 100 words.", "asked_words", 100),
        ("Write between 150 and 200 words about it", "asked_words", 200),
        ("Give me five creative ideas", "asked_items", 5),
        ("Answer in 3 short sentences", "asked_sentences", 3),
        ("An essay of 1,500 words", "asked_words", 1500),
        ("Explain it step by step", "words_stepwise", 3),
        ("Is this true or false?", "layout_question_marks", 1),
        ("x\nA. one\nB. two\nC. three", "layout_option_lines", 3),
        ("1. a\n2. b", "layout_numbered_lines", 2),
        ("- a\n- b\n- c", "layout_bullet_lines", 3),
        ("```\nf(x)\n```", "layout_fences", 2),
        ('{"required": ["city", "unit"]}', "layout_required_names", 2),
        ("<|system|>\nBe brief.\n<|user|>\nHi", "layout_role_marks", 2),
        ("def f():\n    return 1\n", "layout_indented_lines", 1),
        ("see https://x.org", "layout_urls", 1),
        ("Translate to French", "words_translate", 2),
    ],
)
def test_what_is_asked_for_is_counted(prompt: str, column: str, expected: float) -> None:
    assert count(read(prompt)[column]) == expected


@settings(deadline=None)
@given(st.text())
def test_tokens_cover_every_visible_ascii_character(prompt: str) -> None:
    text = encode(prompt)
    kinds, hashes, values, starts, stops = scan(text)
    covered = np.zeros(text.size, bool)
    for start, stop in zip(starts, stops, strict=True):
        assert not covered[start:stop].any()
        covered[start:stop] = True
    blank = (text <= 32) & (text != 10) | (text == 127)
    assert (covered | blank).all()
    assert len(kinds) == len(hashes) == len(values)


@settings(deadline=None)
@given(st.lists(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), min_size=1, max_size=3))
def test_plain_python_hashes_like_the_compiled_scan(words: list[str]) -> None:
    from lengthwise.predictor.features.scan import combine

    _, hashes, _, _, _ = scan(encode(" ".join(words)))
    folded = hashes[0]
    for h in hashes[1:]:
        folded = np.uint64(combine(folded, h))
    assert word_hash(" ".join(words)) == folded


def test_case_does_not_matter_to_words() -> None:
    assert (scan(encode("HELLO World"))[1] == scan(encode("hello world"))[1]).all()


HARD = [
    "",
    " \n\t ",
    "\x00\x01\x7f",
    "🙂" * 50,
    "今天天气怎么样?",
    "a" * 1_000_000,
    "\ud800 lone",
    "9" * 400,
]


@pytest.mark.parametrize("prompt", HARD, ids=range(len(HARD)))
def test_any_text_gives_finite_columns(prompt: str) -> None:
    features = PromptFeatures(HashedText(components=2)).fit(["one two", "two three", "three one"])
    row = features.transform([prompt])
    assert row.dtype == np.float32
    assert np.isfinite(row).all()


def test_names_match_columns_and_blocks_can_be_left_out() -> None:
    texts = ["one two", "two three", "three one four"]
    for blocks in [("structure",), ("text",), ("request",), ("structure", "text", "request")]:
        features = PromptFeatures(HashedText(components=2), blocks).fit(texts, [1, 2, 3])
        names = features.get_feature_names_out()
        assert features.transform(texts).shape == (3, len(names))
        assert len(set(names)) == len(names)


def test_a_missing_token_count_is_estimated_from_the_text() -> None:
    texts = [" ".join(["word"] * n) for n in range(10, 60)]
    frame = pd.DataFrame({"prompt": texts, "prompt_tokens": [2 * n for n in range(10, 60)]})
    features = PromptFeatures(HashedText(components=2)).fit(frame)
    column = list(features.get_feature_names_out()).index("request_log_prompt_tokens")
    guessed = features.transform(texts)[:, column]
    np.testing.assert_allclose(np.expm1(guessed), frame["prompt_tokens"], rtol=0.1)


def naive_tfidf(texts: list[str], train: list[str]) -> np.ndarray:
    """Unhashed twin: tokens, neighbours and marked heads, sublinear tf, smooth idf, length 1."""

    def grams(text: str) -> dict[object, int]:
        found: dict[object, int] = {}
        tokens = re.findall(r"[a-z]+|[^\w\s]", text.lower())
        for i, token in enumerate(tokens):
            keys = [(token,)] + ([("head", token)] if i < 10 else [])
            keys += [(tokens[i - 1], token, "pair")] if i else []
            for key in keys:
                found[key] = found.get(key, 0) + 1
        return found

    counted = [grams(text) for text in train]
    frequency: dict[object, int] = {}
    for row in counted:
        for key in row:
            frequency[key] = frequency.get(key, 0) + 1
    kept = sorted((k for k, f in frequency.items() if f >= 2), key=str)
    rows = np.array(
        [
            [
                (1 + np.log(g[k])) * (np.log((1 + len(train)) / (1 + frequency[k])) + 1)
                if k in g
                else 0.0
                for k in kept
            ]
            for g in map(grams, texts)
        ]
    )
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def test_text_columns_are_the_svd_of_tfidf() -> None:
    rng = np.random.default_rng(0)
    words = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta"]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(40)]
    text = HashedText(components=5, bits=18)
    ours = text.fit_transform(texts)
    naive = naive_tfidf(texts, texts)
    _, _, directions = np.linalg.svd(naive, full_matrices=False)
    theirs = naive @ directions[:5].T
    np.testing.assert_allclose(np.abs(ours[:, :2]), np.abs(theirs[:, :2]), atol=1e-3)
    np.testing.assert_allclose(text.transform(texts), ours, atol=1e-5)


def test_the_ridge_column_of_training_rows_is_out_of_fold() -> None:
    texts = [f"unique{chr(97 + i // 26)}{chr(97 + i % 26)} common" for i in range(60)]
    doubled = texts * 2
    y = np.exp(np.random.default_rng(0).normal(5, 1, 60)).tolist() * 2
    text = HashedText(components=2, alpha=0.01)
    grouped = text.fit_transform(doubled, y, groups=[str(i) for i in range(60)] * 2)[:, -2]
    seen = text.transform(doubled)[:, -2]
    target = np.log(y)
    assert np.corrcoef(seen, target)[0, 1] > 0.9
    # with its group held out, a row whose only telling word is its own cannot be known
    assert abs(np.corrcoef(grouped, target)[0, 1]) < 0.4


def test_a_class_has_a_ridge_of_its_own() -> None:
    rng = np.random.default_rng(0)
    words = [str(rng.choice(["apple", "pear"])) for _ in range(400)]
    classes = [str(rng.choice(["a", "b"])) for _ in range(400)]
    # "apple" means long in one class and short in the other: the common ridge sees nothing
    longer = [(w == "apple") == (c == "a") for w, c in zip(words, classes, strict=True)]
    y = np.where(longer, 400, 100)
    text = HashedText(components=1, min_class_rows=50)
    out_of_fold = text.fit_transform(words, y, None, classes)
    assert abs(np.corrcoef(out_of_fold[:, -2], longer)[0, 1]) < 0.3
    assert np.corrcoef(out_of_fold[:, -1], longer)[0, 1] > 0.95
    served = text.transform(["apple", "apple", "apple"], ["a", "b", "never-seen"])
    assert served[0, -1] > served[2, -1] > served[1, -1]
    assert served[2, -1] == served[2, -2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["a", "b", "7", ",", "\n", "word", "Ärger", "long"]), max_size=200),
    st.sampled_from([4, 64, 1 << 16]),
)
def test_ngrams_are_counted_whatever_the_size_of_the_table(words, total):
    """A table of the prompt's size, of all buckets where they are few: the same counts."""
    text = encode(" ".join(words) or " ")
    kinds, hashes, _, starts, stops = scan(text)
    found = [h for h, kind in zip(hashes, kinds, strict=True) if kind != NEWLINE]
    mark = np.uint64(0x9E3779B97F4A7C15)
    grams = [*found, *(combine(a, b) for a, b in pairwise(found)),
             *(combine(mark, h) for h in found[:HEAD_TOKENS])]  # fmt: skip
    wanted = Counter((int(h) ^ int(h) >> 31) & (total - 1) for h in grams)
    buckets, counts = count_ngrams(text, kinds, hashes, starts, stops, 0, total)
    assert dict(zip(buckets.tolist(), counts.tolist(), strict=True)) == wanted
    assert len(set(buckets.tolist())) == len(buckets)


def test_a_row_in_one_call_is_what_its_blocks_say_one_by_one() -> None:
    texts = [
        "List 5 rivers in one sentence.",
        "Write 200 words\nabout ice, step by step",
        "",
        "a b",
    ]
    frame = pd.DataFrame({"prompt": texts * 6, "slo_class": ["chat", "code", None, "new"] * 6,
                          "prompt_tokens": [7, None, 1, None] * 6})  # fmt: skip
    for blocks in (("structure", "tools", "text", "request"), ("text",), ("tools", "request")):
        features = PromptFeatures(text=HashedText(min_class_rows=4), blocks=blocks)
        features.fit(frame[frame["slo_class"] != "new"], y=np.arange(18) + 1.0)
        classes = [name if isinstance(name, str) else None for name in frame["slo_class"]]
        tokens = [None if np.isnan(count) else int(count) for count in frame["prompt_tokens"]]
        text = features.text_
        columns = text.transform(texts * 6, classes) if "text" in blocks else np.empty((24, 0))
        parted = features._join(features._counted(texts * 6), columns, classes, tokens)
        assert features.rows(texts * 6, classes, tokens).tobytes() == parted.tobytes()
