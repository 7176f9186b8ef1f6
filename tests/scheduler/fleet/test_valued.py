"""What an instance's plan is worth is kept until something changes there."""

import numpy as np
import pytest
from fleet_cases import LEVELS, engine, request, state
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.scheduler.fleet import fleet_rows as fr
from lengthwise.scheduler.fleet.fleet_request import PlanLimits
from lengthwise.scheduler.fleet.gain import BY_SELECTION, GAIN, VALID_S, value_of
from lengthwise.scheduler.fleet.knowledge import Knowledge

INSTANCES = 3
ALL = np.arange(INSTANCES)


def fleet(order=BY_SELECTION):
    k = Knowledge(LEVELS, order)
    for i in range(INSTANCES):
        k.add(f"i{i}", engine(cache=True), 0.0)
    return k


def asked(k, key, now_s, **known):
    one = request(key, now_s, **known)
    k.meet(one)
    return one, k.gains(one, ALL, now_s)[:, GAIN]


def valued_anew(k, i, now_s):
    """The value of the rows that are there, seen as the kept one was."""
    return value_of(k.rows, i, k.rows.counts[i, fr.ALL], k.weighing(now_s), k.scratch)


step = st.tuples(
    st.sampled_from(["ask", "ask", "send", "send", "end", "state", "limits", "kind"]),
    st.integers(0, INSTANCES - 1),
    st.floats(0.0, 0.06),
    st.floats(2.0, 60.0),
)


@given(st.lists(step, max_size=40), st.sampled_from([0, 1, 2]))
@settings(max_examples=80, deadline=None)
def test_a_value_that_is_kept_is_that_of_what_is_there(steps, order):
    k, now_s, there, sequence = fleet(order), 0.0, {}, 0
    for key, (what, i, passed_s, tokens) in enumerate(steps):
        now_s += passed_s
        if what in ("ask", "send"):
            one, _ = asked(k, key, now_s, tokens=tokens, e2e_s=0.1 * tokens, prefix=key % 2,
                           prefix_tokens=16.0)  # fmt: skip
            if what == "send":
                k.send(one, i, now_s)
                there[key] = i
            else:
                k.known.forget(key)
        elif what == "end" and there:
            gone = next(iter(there))
            k.completed(gone, now_s)
            del there[gone]
        elif what in ("state", "limits"):
            sequence += 1
            keys = [name for name, at in there.items() if at == i]
            limits = PlanLimits(2.0, 64.0, 1.0) if what == "limits" else None
            said = {} if limits is None else {"limits": limits}
            told = state(now_s, running=keys[:2], waiting=keys[2:], sequence=sequence, **said)
            k.observe(i, told)
        elif what == "kind":
            k.change(i, engine(speed=0.5, cache=True))
        for j in range(INSTANCES):
            kept = k.rows.valued[j, fr.VALUE]
            if not np.isnan(kept):
                assert kept == valued_anew(k, j, now_s)


def test_a_slot_that_is_used_anew_says_nothing_of_who_had_it():
    k = fleet()
    first, _ = asked(k, 1, 0.0, tokens=5.0, e2e_s=9.0)
    k.send(first, 0, 0.0)
    k.completed(1, 0.01)
    second = request(2, 0.02, tokens=60.0, e2e_s=0.2)
    slot = k.meet(second)
    assert k.rows.valued[1, fr.WITH_SLOT] == slot
    k.send(second, 1, 0.02)  # without being weighed
    assert np.isnan(k.rows.valued[1, fr.VALUE])


def test_nothing_is_reckoned_twice_where_nothing_has_changed():
    k = fleet()
    for key in range(6):
        one, _ = asked(k, key, 0.0)
        k.send(one, key % INSTANCES, 0.0)
    k.rows.valued[:] = np.nan
    asked(k, 100, 0.01)
    first = k.rows.valued[:, fr.VALUED_S].copy()
    asked(k, 101, 0.01 + 0.9 * VALID_S)
    assert k.rows.valued[:, fr.VALUED_S] == pytest.approx(first)
    asked(k, 102, 0.01 + 1.1 * VALID_S)
    assert (k.rows.valued[:, fr.VALUED_S] > first).all()


def test_a_kept_value_gives_the_gain_that_a_new_one_does():
    k = fleet()
    for key in range(9):
        one, _ = asked(k, key, 0.0, tokens=20.0, e2e_s=2.0)
        k.send(one, key % INSTANCES, 0.0)
    _, with_kept = asked(k, 100, 0.05, tokens=20.0, e2e_s=2.0)
    k.rows.valued[:] = np.nan
    _, anew = asked(k, 101, 0.05, tokens=20.0, e2e_s=2.0)
    assert with_kept == pytest.approx(anew, abs=0.02)
