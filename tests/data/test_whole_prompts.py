from __future__ import annotations

from dataclasses import replace
from itertools import takewhile

import pytest

from lengthwise.data.arena.whole_prompts import whole_prompt, words
from lengthwise.data.arena.workloads import build_workload
from lengthwise.data.slo import Slo
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.tokens import count_tokens
from lengthwise.data.workload import WorkloadRequest


def shared_words(a: str, b: str) -> int:
    pairs = zip(a.split(), b.split(), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


@pytest.fixture(scope="module")
def table():
    return synthetic_table(rows=1500)


@pytest.mark.parametrize("name", ["agents", "documents"])
def test_the_written_prompt_has_the_tokens_of_the_workload(name, table):
    requests = build_workload(name, table, 20, 3.0, seed=1)
    texts = [whole_prompt(r, i) for i, r in enumerate(requests)]
    for request, text, count in zip(requests, texts, count_tokens(texts), strict=True):
        assert abs(count - request.prompt_tokens) <= 4
        assert text.endswith(request.prompt)


def test_those_who_share_a_beginning_share_it_and_no_more(table):
    requests = build_workload("agents", table, 40, 3.0, seed=1)
    first = requests[0]
    others = [(i, r) for i, r in enumerate(requests) if r.prefix == first.prefix][1:]
    strangers = [(i, r) for i, r in enumerate(requests) if r.prefix != first.prefix]
    assert others
    assert strangers
    text = whole_prompt(first, 0)
    for i, r in others:
        assert abs(shared_words(text, whole_prompt(r, i)) - first.prefix_tokens) <= 5
    for i, r in strangers:
        assert shared_words(text, whole_prompt(r, i)) <= 5
    assert whole_prompt(first, 0) == text


def test_a_whole_prompt_is_left_alone():
    request = WorkloadRequest(0.0, 5, 3, Slo(), prompt="as it is")
    assert whole_prompt(request, 0) == "as it is"
    assert whole_prompt(replace(request, prompt=None), 0) is None
    assert words("a", 0) == ""


def test_readable_tokens_are_those_of_the_text():
    request = WorkloadRequest(0.0, 50, 3, Slo(), prompt="own words", text_tokens=2)
    assert request.readable_tokens == 2
    assert replace(request, text_tokens=None).readable_tokens == 50
