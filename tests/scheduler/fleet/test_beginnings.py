"""Prompts known by their beginnings: who shares one, and which instance has it."""

from __future__ import annotations

import numpy as np
import pytest
from fleet_cases import engine, request, router_named, state
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.fleet.beginnings import (
    BLOCK_TOKENS,
    CHARS_PER_TOKEN,
    PLACES,
    SeenBeginnings,
    beginnings_of,
)
from lengthwise.scheduler.fleet.known_prefixes import PrefixMemory
from lengthwise.scheduler.problem import NO_PREFIX

token_ids = st.lists(st.integers(0, 3), max_size=200)


def places_within(tokens):
    return [place * BLOCK_TOKENS for place in PLACES if place * BLOCK_TOKENS <= tokens]


@given(token_ids, token_ids, token_ids)
def test_equal_names_are_equal_beginnings(shared, one, other):
    a, b = beginnings_of(shared + one), beginnings_of(shared + other)
    assert [tokens for _, tokens in a] == places_within(len(shared + one))
    for (name, tokens), (another, _) in zip(a, b, strict=False):
        place = int(tokens)
        assert (name == another) == ((shared + one)[:place] == (shared + other)[:place])
        assert name >= 0


@pytest.mark.parametrize(
    "prompt", [[1, 10**25] * 20, [[1, 2], [3]], [[1] * 20], [None] * 20, ["a"] * 20, {1, 2}, "", ()]
)
def test_what_is_no_prompt_has_no_beginnings(prompt):
    assert beginnings_of(prompt) == ()
    assert SeenBeginnings().note(prompt) == (NO_PREFIX, 0.0, ())


@pytest.mark.parametrize("text", ["\ud800" * 70, "字" * 70])
def test_any_text_has_beginnings_as_long_as_its_length_says(text):
    assert [tokens for _, tokens in beginnings_of(text)] == [16.0]


@given(st.text(max_size=400), st.text(max_size=400))
def test_text_is_cut_at_so_many_characters(shared, more):
    a, b = beginnings_of(shared), beginnings_of(shared + more)
    assert b[: len(a)] == a
    block = BLOCK_TOKENS * CHARS_PER_TOKEN
    assert len(a) == sum(place * block <= len(shared) for place in PLACES)


def test_the_longest_beginning_that_an_earlier_prompt_had():
    seen = SeenBeginnings()
    system = list(range(100))
    assert seen.note([*system, *[7] * 60])[:2] == (NO_PREFIX, 0.0)
    name, tokens, all_of_it = seen.note([*system, *[8] * 60])
    assert tokens == 96.0  # 6 of the places 1 to 6 blocks
    assert (name, tokens) in all_of_it
    assert all_of_it[-1][1] == 160.0
    assert seen.note([*system, *[8] * 100])[1] == 160.0  # the session goes on
    assert seen.note([1, 2, 3]) == (NO_PREFIX, 0.0, ())


def test_what_was_not_seen_for_longest_is_forgotten_its_longest_beginnings_first():
    seen = SeenBeginnings(most=6)
    seen.note([1] * 64)  # 4 places
    seen.note([2] * 64)
    assert len(seen) == 6
    assert seen.note([1] * 64)[1] == 32.0
    assert seen.note([2] * 64)[1] == 32.0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 200)), max_size=40))
def test_an_instance_remembers_beginnings_within_its_room(prompts):
    memory, room = PrefixMemory(), 256.0
    for kind, length in prompts:
        starts = beginnings_of([kind] * length)
        memory.note(starts, room)
        most = starts[-1][1] if starts else 0.0
        assert memory.tokens(starts) >= min(most, room)
        assert sum(memory.tokens(beginnings_of([k] * 200)) for k in range(4)) <= room
        for shorter in range(length):
            some = beginnings_of([kind] * shorter)
            assert memory.tokens(some) == (some[-1][1] if some and most <= room else 0.0)


def test_a_sessions_next_prompt_is_cached_where_its_last_one_ran():
    router, seen = router_named("gain"), SeenBeginnings()
    for i in range(2):
        router.add(f"i{i}", engine(cache=True), 0.0)
    talk = np.random.default_rng(0).integers(0, 1000, 600).tolist()
    k = router.knowledge

    def told(key, prompt):
        prefix, tokens, starts = seen.note(prompt)
        return request(
            key, float(key), prompt=float(len(prompt)), prefix=prefix, prefix_tokens=tokens,
            beginnings=starts, e2e_s=5.0,
        )  # fmt: skip

    first = told(0, talk[:300])
    k.meet(first)
    k.send(first, 1, 0.0)
    router.observe(1, state(0.5, running=[0], generated=1.0, sequence=1))
    router.completed(0, 1.0)
    following = told(1, talk)
    assert k.cached_tokens(0, following) == 0.0
    assert k.cached_tokens(1, following) == 256.0  # places 16 and 20 blocks: 300 is between
    router.observe(0, state(1.0, sequence=1))
    router.observe(1, state(1.0, sequence=2))
    assert router.route(following, 1.0).instance == 1
    stranger = told(2, talk[::-1])
    assert k.cached_tokens(1, stranger) == 0.0
