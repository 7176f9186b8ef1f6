from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from planning_cases import MODEL, draw_problem, draw_workload

from lengthwise.scheduler.guards.admission import (
    AdmissionControl,
    AdmissionRule,
    ShareCap,
    drain_s,
)
from lengthwise.scheduler.plan.rollout.outcome import played
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate

SMALL = EngineProfile("small", MODEL, Capacity(6, 3_000, 256), "test")


def by_arrival(problem):
    return np.argsort(problem.waiting.arrival_s, kind="stable")


def never_asked(problem):
    raise AssertionError("the plan was asked for")


def newcomer(problem, **objectives):
    """The problem with the last waiting row arriving now, with these objectives alone."""
    rows = problem.waiting
    columns = {"ttft_s": np.inf, "tpot_s": np.inf, "e2e_s": np.inf} | objectives
    changed = {name: getattr(rows, name).copy() for name in columns}
    for name, value in columns.items():
        changed[name][-1] = value
    arrival_s = np.append(rows.arrival_s[:-1], problem.now_s)
    return replace(problem, waiting=replace(rows, arrival_s=arrival_s, **changed))


@given(
    acted=st.lists(st.booleans(), max_size=120), share=st.floats(0, 1), window=st.integers(1, 20)
)
def test_no_window_holds_more_than_the_cap(acted, share, window):
    cap, history = ShareCap(share, window), []
    for wanted in acted:
        history.append(wanted and cap.allows())
        cap.note(history[-1])
        recent = history[-window:]
        assert sum(recent) <= share * len(recent) + 1e-9
        assert cap.acted_share == pytest.approx(sum(recent) / len(recent))


@given(
    seed=st.integers(0, 500),
    mode=st.sampled_from(["shed", "downgrade"]),
    max_share=st.floats(0, 1),
    own=st.floats(0, 1),
)
def test_the_share_acted_on_stays_below_every_cap(seed, mode, max_share, own):
    control = AdmissionControl(AdmissionRule(mode, 1.0, max_share, {"a": own}, window=8))
    rng = np.random.default_rng(seed)
    hopeless = newcomer(draw_problem(seed, 3), e2e_s=1e-3)
    history = []
    for _ in range(30):
        name = str(rng.choice(["a", "b"]))
        history.append((name, control.decide(hopeless, by_arrival, name).action == mode))
        for rows, share in ((history, max_share), ([h for h in history if h[0] == "a"], own)):
            recent = [acted for _, acted in rows[-8:]]
            assert sum(recent) <= share * len(recent) + 1e-9


@given(seed=st.integers(0, 500), waiting=st.integers(1, 30))
def test_best_effort_is_never_acted_on(seed, waiting):
    control = AdmissionControl(AdmissionRule("shed", 1.0, 1.0))
    problem = newcomer(draw_problem(seed, waiting))
    assert control.decide(problem, by_arrival).action == "admit"
    assert control.total.acted_share == 0.0


def test_off_asks_nobody():
    control = AdmissionControl(AdmissionRule())
    problem = newcomer(draw_problem(1, 5), e2e_s=1e-3)
    assert control.decide(problem, never_asked).action == "admit"


def test_the_hopeless_go_and_the_others_stay():
    problem = draw_problem(2, 20)
    control = AdmissionControl(AdmissionRule("shed", max_share=1.0))
    shed = control.decide(newcomer(problem, ttft_s=1e-4), never_asked)
    assert shed.action == "shed"
    assert shed.chance == 0.0
    assert 1.0 <= shed.retry_after_s <= 600.0
    assert control.decide(newcomer(problem, ttft_s=1e4), by_arrival).action == "admit"
    lowered = AdmissionControl(AdmissionRule("downgrade", max_share=1.0))
    assert lowered.decide(newcomer(problem, ttft_s=1e-4), never_asked).action == "downgrade"


def test_the_plan_decides_who_is_hopeless():
    """First in the queue it would be met, behind forty others it would not."""
    problem = newcomer(draw_problem(4, 40), ttft_s=2.0)
    last = np.arange(40)
    control = AdmissionControl(AdmissionRule("shed", max_share=1.0))
    assert control.decide(problem, lambda _: last[::-1]).action == "admit"
    assert control.decide(problem, lambda _: last).action == "shed"


@given(seed=st.integers(0, 300), waiting=st.integers(2, 20))
def test_a_later_place_never_helps(seed, waiting):
    """Where memory does not bind: there a long prompt before it may let it in sooner."""
    problem = newcomer(draw_problem(seed, waiting, kv_tokens=10**6), ttft_s=3.0)
    others = np.arange(waiting - 1)
    outcomes = [played(problem, np.insert(others, place, waiting - 1)) for place in range(waiting)]
    chances = [outcome.chance[-1] for outcome in outcomes]
    assert all(0.0 <= chance <= 1.0 for chance in chances)
    assert (np.diff([outcome.first_s[-1] for outcome in outcomes]) >= -0.05).all()
    assert (np.diff(chances) <= 0.02).all()


def test_a_longer_queue_drains_later():
    waits = [drain_s(draw_problem(7, n)) for n in (1, 20, 80)]
    assert waits[0] == 1.0
    assert waits[1] < waits[2]


@pytest.mark.parametrize(
    "values", [{"mode": "drop"}, {"threshold": 1.5}, {"per_class": {"a": -0.1}}, {"window": 0}]
)
def test_a_bad_rule_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        AdmissionRule(**values)


def overload():
    """Every fourth request is best effort, the others have a second."""
    e2e_s = np.where(np.arange(120) % 4 == 0, np.inf, 1.0)
    never = np.full(120, np.inf)
    return replace(draw_workload(5, 120, rate_rps=120.0), ttft_s=never, tpot_s=never, e2e_s=e2e_s)


@pytest.mark.parametrize("mode", ["shed", "downgrade"])
def test_in_the_simulator_the_rest_gains_and_the_caps_hold(mode):
    workload = overload()
    objective = np.isfinite(workload.e2e_s)
    plain = simulate(workload, make_policy("sa", iterations=20), SMALL)
    result = simulate(
        workload,
        make_policy("sa", iterations=20),
        SMALL,
        admission=AdmissionControl(AdmissionRule(mode, 0.3, 0.5)),
        admission_policy=make_policy("sa", iterations=1),
    )
    acted = np.array([action == mode for action in result.actions])
    assert 0 < acted.sum() <= 0.5 * objective.sum()
    assert not acted[~objective].any()
    met = result.met(workload)
    assert met[~acted].mean() >= plain.met(workload)[~acted].mean() - 0.02
    if mode == "shed":
        assert np.isnan(result.finish_s[acted]).all()
        assert not met[acted].any()
    else:
        assert np.isfinite(result.finish_s).all()
    assert np.isfinite(result.finish_s[~acted]).all()
