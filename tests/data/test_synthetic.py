from __future__ import annotations

import re
from random import Random

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import default_source, load_table
from lengthwise.data.sources.synthetic.corpus import CAP_TOKENS, synthetic_table
from lengthwise.data.sources.synthetic.templates import TASKS
from lengthwise.data.splits import split_of
from lengthwise.data.tokens import load_counter


@pytest.fixture(scope="module")
def corpus():
    return synthetic_table()


def test_it_is_labelled_and_the_fallback():
    table = load_table("synthetic", limit=50)
    assert len(table) == 50
    assert table.attrs["source_label"] == "synthetic"
    assert table.attrs["tokenizer"] == "tekken"
    assert default_source() == "synthetic"


def test_it_holds_every_class_and_many_tasks(corpus):
    assert len(corpus) == 6000
    assert set(corpus["slo_class"]) == set(TASKS)
    assert corpus["task"].nunique() >= 6
    assert corpus["id"].nunique() > 5500
    assert corpus["group"].nunique() > 3000
    assert corpus["slo_class"].value_counts().min() > 300


def test_prompts_are_counted_not_guessed(corpus):
    count = load_counter()
    rows = corpus.sample(60, random_state=0)
    assert [count(prompt) for prompt in rows["prompt"]] == rows["prompt_tokens"].tolist()


def test_length_follows_what_the_prompt_asks(corpus):
    def mean_of(task, text):
        rows = corpus[corpus["task"] == task]
        hits = rows[rows["prompt"].str.contains(text, regex=False)]
        assert len(hits) >= 5
        return hits["output_tokens"].mean()

    assert mean_of("chat_explain", "in detail") > 3 * mean_of("chat_explain", "briefly")
    assert mean_of("chat_list", " 20 ") > 2 * mean_of("chat_list", " 5 ")
    assert mean_of("classification", "reason in one") > 3 * mean_of("classification", "label only")
    assert mean_of("code_class", "unit tests for every") > 1.2 * mean_of("code_class", "methods")
    assert mean_of("maths", "second way") > 1.8 * mean_of("maths", "short calculation")


def test_reasoning_has_a_tail_and_few_rows_at_the_cap(corpus):
    reasoning = corpus[corpus["slo_class"] == "reasoning"]["output_tokens"]
    assert np.quantile(reasoning, 0.99) > 5 * np.median(reasoning)
    censored = corpus[corpus["censored"]]
    assert 3 <= len(censored) < 0.01 * len(corpus)
    assert (censored["output_tokens"] == CAP_TOKENS).all()
    assert (corpus["output_tokens"] <= CAP_TOKENS).all()


def test_same_seed_same_rows_and_no_prompt_on_two_sides(corpus):
    again, other = synthetic_table(300, seed=3), synthetic_table(300, seed=4)
    assert synthetic_table(300, seed=3).equals(again)
    assert synthetic_table(300, seed=3).attrs == again.attrs
    assert other.attrs["data_sha256"] != again.attrs["data_sha256"]
    sides = split_of(list(corpus["group"]))
    assert (corpus.assign(side=sides).groupby("id")["side"].nunique() == 1).all()


def test_a_caller_may_change_its_copy():
    first = synthetic_table(20)
    first["output_tokens"] = 1
    first.attrs["source_label"] = "mine"
    assert synthetic_table(20)["output_tokens"].max() > 1
    assert synthetic_table(20).attrs["source_label"] == "synthetic"


@pytest.mark.parametrize("make", [make for tasks in TASKS.values() for make, _ in tasks])
def test_every_template_gives_varied_drafts(make):
    rng = Random(1)
    drafts = [make(rng) for _ in range(100)]
    assert len({draft.prompt for draft in drafts}) > 60
    assert len({draft.median_tokens for draft in drafts}) > 5
    assert all(draft.median_tokens >= 2 for draft in drafts)
    unfilled = re.compile(r"\{(who|company|city|goods|n|year|name)\}")
    assert not any(unfilled.search(draft.prompt) for draft in drafts)


def test_rows_must_be_positive():
    with pytest.raises(InputError, match="rows must be at least 1, got 0"):
        synthetic_table(0)
