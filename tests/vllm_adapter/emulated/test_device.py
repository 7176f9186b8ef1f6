from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.vllm_adapter.emulated.device import (
    Answers,
    DeviceClock,
    Scheduled,
    filler_tokens,
)

EOS = 2


def test_a_step_lasts_what_the_profile_says_or_what_the_host_takes():
    clock = DeviceClock()
    assert clock.enqueue(1.0, 0.02, continues=False) == (1.02, False)
    # the host is 5 ms late, which is within the step
    assert clock.enqueue(1.025, 0.02, continues=True) == (pytest.approx(1.04), False)
    # the host is later than the step's end: it ends at once, and nothing is made up for
    assert clock.enqueue(1.1, 0.02, continues=True) == (1.1, True)
    assert clock.enqueue(1.1, 0.02, continues=True) == (pytest.approx(1.12), False)


def test_a_step_after_a_rest_begins_when_it_is_asked_for():
    clock = DeviceClock()
    clock.enqueue(1.0, 0.02, continues=False)
    assert clock.enqueue(5.0, 0.02, continues=False) == (pytest.approx(5.02), False)


@given(
    st.lists(
        st.tuples(st.floats(0, 0.1), st.floats(1e-4, 0.1), st.booleans()), min_size=1, max_size=40
    )
)
def test_steps_never_overlap_and_never_end_before_they_are_asked_for(asked):
    clock, now_s, last_end_s = DeviceClock(), 0.0, 0.0
    for wait_s, step_s, continues in asked:
        now_s += wait_s
        end_s, late = clock.enqueue(now_s, step_s, continues)
        assert end_s >= now_s
        assert late or end_s >= last_end_s + step_s - 1e-9 or not continues
        assert end_s >= last_end_s
        last_end_s = end_s


def test_chunks_sample_nothing_and_the_last_token_is_the_end():
    answers = Answers([7, 8])
    answers.add("a", prompt_tokens=10, length=3, eos=EOS)
    assert answers.step([Scheduled("a", 0, 6)]).sampled == [[]]
    first = answers.step([Scheduled("a", 6, 4)])
    assert first.sampled[0][0] in (7, 8)
    assert (first.prefill_tokens, first.decode_seqs) == (4, 0)
    second = answers.step([Scheduled("a", 10, 1)])
    assert second.sampled[0][0] in (7, 8)
    assert (second.decode_seqs, second.context_tokens) == (1, 11)
    assert answers.step([Scheduled("a", 11, 1)]).sampled == [[EOS]]


def test_a_preempted_request_goes_on_where_it_was():
    answers = Answers([7])
    answers.add("a", prompt_tokens=10, length=5, eos=EOS)
    # three tokens of its answer are known; prompt and answer are computed again in two chunks
    answers.resume("a", 3)
    assert answers.step([Scheduled("a", 0, 8)]).sampled == [[]]
    assert answers.step([Scheduled("a", 8, 5)]).sampled == [[7]]
    assert answers.step([Scheduled("a", 13, 1)]).sampled == [[EOS]]


@given(
    prompt=st.integers(1, 60),
    length=st.integers(1, 40),
    cuts=st.lists(st.integers(1, 30), min_size=1, max_size=80),
    losses=st.sets(st.integers(0, 60), max_size=6),
    dropped=st.booleans(),
    accepted=st.floats(1, 4),
)
def test_any_chunks_and_preemptions_give_the_same_answer(
    prompt, length, cuts, losses, dropped, accepted
):
    """Whatever a scheduler does with it, a request gets its tokens once, in order, and one end."""

    def answer(sizes, lost, accepted):
        answers = Answers([7, 8, 9], accepted)
        answers.add("a", prompt, length, EOS)
        known, computed, turn = [], 0, 0
        while EOS not in known:
            if turn in lost:
                computed = 0
                answers.resume("a", len(known))
            tokens = min(prompt + len(known) - computed, sizes[turn % len(sizes)])
            drafts = 3 if tokens == 1 and accepted > 1 else 0
            row = Scheduled("a", computed, tokens + drafts, drafts)
            (sampled,) = answers.step([row]).sampled
            turn += 1
            if dropped and turn in lost:  # under way when the request is preempted
                continue
            # rejected drafts are taken back
            computed += tokens + max(0, len(sampled) - 1)
            known += sampled
        return known

    whole = answer([10**6], set(), 1.0)
    assert len(whole) == length
    # chunks of at least one token always come to an end, since `losses` is finite
    assert answer(cuts, losses, accepted) == whole


@given(st.floats(1, 4), st.integers(1, 3))
def test_drafts_are_accepted_at_their_mean_rate(accepted, drafts):
    answers = Answers([7], accepted)
    answers.add("a", 1, None, EOS)
    counts, computed = [], 0
    for _ in range(200):
        (sampled,) = answers.step([Scheduled("a", computed, 1 + drafts, drafts)]).sampled
        counts.append(len(sampled))
        computed += len(sampled)
    assert max(counts) <= 1 + drafts
    assert abs(sum(counts) / 200 - min(accepted, 1 + drafts)) <= 0.02


def test_a_step_of_drafts_is_one_decode():
    answers = Answers([7], 2.5)
    answers.add("a", 10, None, EOS)
    answers.step([Scheduled("a", 0, 10)])
    work = answers.step([Scheduled("a", 10, 4, 3)])
    assert (work.prefill_tokens, work.decode_seqs, work.context_tokens) == (0, 1, 11)
    assert work.sampled == [[7, 7]]
    # scheduled ahead: the rejected draft still counts as computed
    assert answers.step([Scheduled("a", 14, 4, 3)]).context_tokens == 13


def test_answers_of_two_requests_differ_so_that_no_cache_shares_them():
    answers = Answers(list(range(10, 80)))
    sampled = []
    for name in ("a", "b"):
        answers.add(name, 1, None, EOS)
        sampled.append([answers.step([Scheduled(name, i, 1)]).sampled[0][0] for i in range(16)])
    assert sampled[0] != sampled[1]


def test_ended_requests_leave_nothing():
    answers = Answers([7])
    answers.add("a", 1, None, EOS)
    answers.drop(["a", "unknown"])
    assert len(answers) == 0


def test_a_tokenizer_without_words_is_refused():
    class Bytes:
        def encode(self, text, add_special_tokens):
            return list(text.encode())

    with pytest.raises(ValueError, match="no one-token words"):
        filler_tokens(Bytes())
