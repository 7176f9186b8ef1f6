"""Steps told from the stamps of tokens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.lmdeploy_adapter.token_steps import OPEN_STEPS, TokenSteps


def spans(steps):
    return [time_s for step in steps for time_s in (step.began_s, step.ended_s)]


def test_a_step_lasts_from_the_stamp_before_it():
    steps = TokenSteps()
    steps.at_work(100.0)
    told = steps.read("a", 100.5, 11, 10)  # a prompt of ten tokens, its first token
    for at in range(1, 6):
        told += steps.read("a", 100.5 + 0.02 * at, 11 + at, 0)
    told += steps.at_rest()
    ends_s = [100.5 + 0.02 * at for at in range(6)]
    assert spans(told)[0::2] == pytest.approx([100.0, *ends_s[:-1]])
    assert spans(told)[1::2] == pytest.approx(ends_s)
    assert [(s.prefill_tokens, s.decodes, s.context_tokens) for s in told] == [
        (10, 0, 0), (0, 1, 12), (0, 1, 13), (0, 1, 14), (0, 1, 15), (0, 1, 16),
    ]  # fmt: skip


def test_tokens_of_one_step_are_one_whatever_reads_first():
    steps = TokenSteps()
    steps.at_work(0.0)
    told = steps.read("a", 2.0, 20, 0)  # read before the tokens of the step before
    told += steps.read("b", 1.0, 30, 0)
    told += steps.read("c", 1.0005, 40, 0)  # a callback apart
    assert told == []
    told = steps.at_rest()
    assert spans(told) == [0.0, 1.0, 1.0, 2.0]
    assert [step.decodes for step in told] == [3, 1]  # the first reader has no stamp before


def test_who_comes_too_late_is_left_out():
    steps = TokenSteps()
    steps.at_work(0.0)
    told = [step for at in range(1, 6) for step in steps.read("a", float(at), 1, 0)]
    assert len(told) == 5 - OPEN_STEPS
    assert steps.read("a", 1.0, 1, 0) == []
    assert spans(steps.at_rest())[:2] == [2.0, 3.0]


def test_tokens_that_were_gathered_are_as_many_steps():
    steps = TokenSteps()
    steps.at_work(0.0)
    steps.read("a", 0.02, 11, 0)
    steps.read("a", 0.08, 14, 0, tokens=3)
    told = steps.at_rest()
    assert spans(told) == pytest.approx([0.0, 0.02, 0.02, 0.04, 0.04, 0.06, 0.06, 0.08])
    steps.at_work(1.0)
    steps.read("a", 1.5, 14, 10, tokens=4)  # which part of it the prompt took nobody knows
    assert steps.at_rest() == []


def test_a_clock_that_is_set_back_is_followed():
    steps, told = TokenSteps(), []
    steps.at_work(5000.0)
    for at in range(1, 8):
        told += steps.read("a", 5000.0 + at, 1, 0)
    assert told
    told = [step for at in range(8) for step in steps.read("a", 1000.0 + at, 1, 0)]
    told += steps.at_rest()
    assert spans(told)[:2] == [1000.0, 1001.0]
    assert len(told) == 7


def test_rest_is_no_part_of_a_step():
    steps = TokenSteps()
    steps.at_work(0.0)
    steps.read("a", 1.0, 1, 0)
    steps.at_rest()
    steps.at_work(50.0)
    steps.read("a", 51.0, 1, 0)
    assert spans(steps.at_rest()) == [50.0, 51.0]


@given(st.lists(st.tuples(st.floats(0.0, 100.0), st.integers(0, 50), st.booleans()), max_size=120))
def test_steps_follow_one_another_and_no_token_counts_twice(reads):
    steps, told, sent = TokenSteps(), [], 0
    steps.at_work(0.0)
    for stamp_s, prompt_tokens, rests in reads:
        sent += 1 if not prompt_tokens else 0
        told += steps.read("a", stamp_s, 1, prompt_tokens)
        if rests:
            told += steps.at_rest()
            steps.at_work(stamp_s)
    told += steps.at_rest()
    assert all(step.ended_s > step.began_s for step in told if step.began_s != step.ended_s)
    assert sum(step.decodes for step in told) <= sent


@given(
    st.lists(st.tuples(st.integers(1, 4), st.lists(st.booleans(), min_size=5, max_size=5)),
             min_size=8, max_size=40)
)  # fmt: skip
def test_readers_that_lag_each_in_its_own_way_tell_the_steps_there_were(sweeps):
    """Sweeps over five readers: some read before the step that comes in during the sweep."""
    steps, told, read_to = TokenSteps(), [], [0] * 5
    steps.at_work(0.0)
    now = 0
    for further, after in sweeps:
        now += further
        for reader in range(5):
            upto = now + after[reader]
            if upto > read_to[reader]:
                tokens, read_to[reader] = upto - read_to[reader], upto
                told += steps.read(f"r{reader}", 0.02 * upto, upto, 0, tokens=tokens)
    told += steps.at_rest()
    whole = [step for step in told if step.ended_s <= 0.02 * min(read_to) + 1e-6]
    assert [step.ended_s - step.began_s for step in whole] == pytest.approx([0.02] * len(whole))
    assert len(whole) == min(read_to)
    assert {step.decodes for step in whole} == {5}


@given(st.integers(2, 8), st.integers(1, 24), st.data())
def test_readers_that_take_turns_tell_steps_prompts_and_batches(running, turn, data):
    """Each reads every ``turn`` steps at most; some begin meanwhile, in a step of prompts alone."""
    steps, told = TokenSteps(), []
    steps.at_work(0.0)
    now_s, work, read_to = 0.0, [], {}
    for step in range(6 * turn + 30):
        begins = step % 17 == 16
        now_s += 0.01 if begins else 0.02
        work.append((now_s, begins, set(read_to)))
        if begins:
            told += steps.read(f"new-{step}", now_s, 8, 8)
            read_to[f"new-{step}"] = len(work)
            continue
        while len(read_to) < running:
            read_to[f"first-{len(read_to)}"] = 0
        for place, name in enumerate(sorted(read_to)):
            due = (step + place) % turn == 0 or data.draw(st.integers(0, 9)) == 0
            tokens = sum(not prompts for _, prompts, _ in work[read_to[name] :])
            if due and tokens:
                told += steps.read(name, now_s, 8, 0, tokens=tokens)
                read_to[name] = len(work)
    prompts = [one for one in told if one.prefill_tokens]
    assert all((one.prefill_tokens, one.decodes) == (8, 0) for one in prompts)
    assert [one.ended_s for one in prompts] == pytest.approx(
        [end_s for end_s, begins, _ in work if begins][: len(prompts)]
    )
    settled = [one for one in told if not one.prefill_tokens and one.began_s > 0.02 * 2 * turn]
    for one in settled:
        assert one.decodes <= len(read_to)
    took_s = sum(one.ended_s - one.began_s for one in settled)
    assert len(settled) * 0.018 <= took_s <= len(settled) * 0.022 or len(settled) < 20
