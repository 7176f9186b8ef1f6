"""What people's files may set of a policy: bounds that hold, told in one line where they do not."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning_cases import draw_problem
from test_policies import check_plan

from lengthwise.scheduler.policies.annealing_settings import Settings
from lengthwise.scheduler.policies.make import check_policy, make_policy
from lengthwise.scheduler.policies.paper import PaperSettings
from lengthwise.scheduler.policies.policy_params import KNOBS, Flag, Number, Words, checked_params

NAMES = [(policy, name) for policy, knobs in KNOBS.items() for name in knobs]
KINDS = {"float": (Number, False), "int": (Number, True), "bool": (Flag, None)}

odd_numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(10**400), 10**400),
    st.sampled_from([-1, 0, -0.0, 1, 0.5, 2, 1e-300, 1e300, math.inf, math.nan, 10**400]),
)
anything = st.recursive(
    st.none() | st.booleans() | odd_numbers | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


def test_every_knob_of_the_policies_has_bounds_of_its_kind():
    own = {"sa": Settings, "sa-paper": PaperSettings}
    for policy, kind in own.items():
        knobs = dict(KNOBS[policy])
        knobs.pop("iterations", None)
        assert set(knobs) == {field.name for field in fields(kind)}
        for field in fields(kind):
            knob = knobs[field.name]
            wanted, whole = KINDS.get(field.type, (Words, None))
            assert isinstance(knob, wanted)
            assert getattr(knob, "whole", None) == whole
            assert knob.checked(getattr(kind(), field.name)) == getattr(kind(), field.name)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(NAMES), anything)
def test_a_value_is_taken_or_refused_in_one_line_with_the_rule(place, value):
    policy, name = place
    refused = None
    try:
        check_policy(policy, {name: value})
    except ValueError as error:
        refused = str(error)
    if refused is not None:
        assert "\n" not in refused
        assert name in refused
        assert "got" in refused
    else:
        taken = checked_params(policy, {name: value})[name]
        if isinstance(KNOBS[policy][name], Number):
            assert math.isfinite(taken)
            assert taken == value


@pytest.mark.parametrize("policy", ["sa", "sa-paper", "edf", "fcfs"])
@pytest.mark.parametrize("name", ["budget_s", "seed", "name", "self", "policy", "", "horizon\n"])
def test_what_is_not_the_files_to_say_is_named(policy, name):
    with pytest.raises(ValueError, match=r"has no parameter .*, got -1; (known: |it takes none)"):
        check_policy(policy, {name: -1})


def numbers_of(policy, **narrower):
    def drawn(name, knob):
        low, high = narrower.get(name, (knob.low, knob.high))
        edges = st.sampled_from([low, high])
        inner = st.integers(int(low), int(high)) if knob.whole else st.floats(low, high)
        return edges | inner

    knobs = {name: knob for name, knob in KNOBS[policy].items() if isinstance(knob, Number)}
    return st.fixed_dictionaries({}, optional={n: drawn(n, knob) for n, knob in knobs.items()})


@settings(max_examples=60, deadline=None)
@given(numbers_of("sa", iterations=(0, 3), most_expected=(0, 2_000)), st.integers(0, 9))
def test_within_the_bounds_a_plan_is_made(params, seed):
    shortest = params.get("shortest_horizon_s", Settings().shortest_horizon_s)
    params["longest_horizon_s"] = max(shortest, params.get("longest_horizon_s", 0.0))
    problem = draw_problem(seed, waiting=6)
    check_plan(make_policy("sa", **params)(problem), problem)
