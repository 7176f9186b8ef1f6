"""The planner's rollout against the simulator: what it foresees, and what then happens.

    python -m benchmarks.simulator.planner.rollout_error --shapes shape-many-slots --seeds 3

A run is played by a rule up to a moment; from there on one plan holds to the end, drawn with or
without slots given up and limits. The rollout foretells it from the same moment, with the true
lengths and the true arrivals as its expected ones. Errors are of the rows that end within the
horizon in both; attainment is of everybody the plan touches.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.common import finish, print_table
from benchmarks.simulator.shapes import KEPT_ASIDE, Run, build
from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.plan.jobs import prepare
from lengthwise.scheduler.plan.rollout.rollout import rollout
from lengthwise.scheduler.plan.rollout.rollout_state import DONE, Work, work_for
from lengthwise.scheduler.plan.rollout.rows import Snapshot, snapshot
from lengthwise.scheduler.plan.value import CERTAIN, worth
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.policies.rules import RULES
from lengthwise.scheduler.problem import Plan, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile, profile_names
from lengthwise.scheduler.simulator.prefix_cache import empty_cache
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload

MOST_EXPECTED = 512


def coming(
    workload: SimWorkload, profile: EngineProfile, now_s: float, until_s: float
) -> RequestArrays:
    """The arrivals from ``now_s`` to ``until_s``, as a planner that knew them would see them."""
    rows = np.flatnonzero((workload.arrival_s > now_s) & (workload.arrival_s < until_s))
    rows = rows[:MOST_EXPECTED]
    columns: dict[str, Any] = {}
    if profile.prefix_cache and workload.prefix_id is not None:
        assert workload.prefix_tokens is not None
        cache = empty_cache(
            profile.prefix_cache.block_tokens, 1, workload.prefix_id, workload.prefix_tokens
        )
        columns = {"prefix_id": cache.prefix[rows], "prefix_tokens": cache.shareable[rows]}
    return RequestArrays.build(
        workload.quantiles[rows],
        workload.arrival_s[rows],
        prompt_tokens=workload.prompt_tokens[rows],
        ttft_s=workload.ttft_s[rows],
        tpot_s=workload.tpot_s[rows],
        e2e_s=workload.e2e_s[rows],
        weight=workload.weight[rows],
        class_id=workload.class_id[rows],
        **columns,
    )


@dataclass
class OnePlan:
    """A policy: ``rule`` until ``at_s``, from then on one drawn plan, which it keeps to."""

    workload: SimWorkload
    profile: EngineProfile
    at_s: float
    horizon_s: float
    rng: np.random.Generator
    slots: bool = False
    limits: bool = False
    rule: str = "feasible-edf"
    name: str = "one-plan"
    nominal_s: float = 0.0
    problem: Problem | None = None

    def warm_up(self) -> None:
        """Nothing to compile."""

    def __call__(self, problem: Problem) -> Plan:
        if self.problem is None:
            if problem.now_s < self.at_s or not len(problem.waiting):
                return Plan(RULES[self.rule](problem, prepare(problem)))
            self._draw(problem)
            return Plan(self._order(problem), preempt=self.preempt, **self.limited)
        return Plan(self._order(problem), **self.limited)

    def _draw(self, problem: Problem) -> None:
        self.problem, rng = problem, self.rng
        until_s = problem.now_s + self.horizon_s
        self.queue = problem.waiting.concatenated(
            coming(self.workload, self.profile, problem.now_s, until_s)
        )
        asked = replace(problem, waiting=self.queue)
        self.order = RULES[self.rule](asked, prepare(asked))
        self.rank = {float(self.queue.arrival_s[i]): p for p, i in enumerate(self.order)}
        running = len(problem.running)
        self.preempt: IntArray = np.empty(0, dtype=np.int64)
        self.limited: dict[str, int] = {}
        if self.slots:
            self.preempt = np.flatnonzero(rng.random(running) < 0.1)
        if self.limits:
            self.limited = {
                "max_running": max(1, int(running * rng.uniform(0.6, 1.0))),
                "max_prefill_tokens": int(2.0 ** rng.uniform(7.0, 12.0)),
            }

    def _order(self, problem: Problem) -> IntArray:
        """Who is in the plan by his rank, then who came after it, then who gave up his slot."""
        rows = problem.waiting
        gone = rows.queued_s > rows.arrival_s
        rank = np.array([self.rank.get(float(a), len(self.rank)) for a in rows.arrival_s])
        order: IntArray = np.lexsort((rows.queued_s, rank, gone)).astype(np.int64)
        return order

    def foretold(self) -> tuple[Snapshot, Work, FloatArray]:
        """The rollout of the plan: rows, what becomes of them, and their chances."""
        assert self.problem is not None
        problem = self.problem
        before = [] if problem.recovering is None else [problem.recovering]
        everybody = problem.running.concatenated(*before, self.queue)
        waiting = len(everybody) - len(self.queue)
        expected = waiting + len(problem.waiting)
        shot = snapshot(problem, everybody, waiting, expected, 0.5)
        w, chance = work_for(len(shot)), np.zeros(len(shot))
        given_up = np.zeros(shot.running, dtype=np.int64)
        given_up[self.preempt] = 1
        order, until_s = self.order + waiting, problem.now_s + self.horizon_s
        between = shot.waiting - shot.running
        rollout(
            shot.engine, shot.rows, shot.running, between, expected, order, given_up,
            float(self.limited.get("max_running", shot.engine.slots)),
            float(self.limited.get("max_prefill_tokens", shot.engine.batched_tokens)),
            float(self.limited.get("prefill_period", 1)), problem.rested_steps,
            False, problem.now_s, until_s, w,
        )  # fmt: skip
        worth(
            shot.engine, shot.rows, shot.running, between, order, given_up, problem.now_s, until_s,
            CERTAIN, w, chance,
        )  # fmt: skip
        return shot, w, chance


@dataclass(frozen=True)
class Errors:
    """Of one moment: foretold less real; ``(m,)`` of the rows that end in both within the horizon.

    ``ahead_s`` is how far ahead the end was; ``decided (d,)`` the errors of the attainment of these
    rows, as far as they have objectives; ``foretold`` and ``met`` are attained shares of
    everybody.
    """

    ttft_s: FloatArray
    tpot_s: FloatArray
    e2e_s: FloatArray
    ahead_s: FloatArray
    real_tpot_s: FloatArray
    ended: tuple[int, int]
    decided: FloatArray
    foretold: float
    met: float
    rows: int


def errors_at(workload: SimWorkload, profile: EngineProfile, policy: OnePlan) -> Errors | None:
    """The rollout's errors; None where nobody waited at the moment or after."""
    result: SimResult = simulate(workload, policy, profile, max_wait_s=1e9)
    if policy.problem is None:
        return None
    shot, w, chance = policy.foretold()
    row_of = {float(a): i for i, a in enumerate(workload.arrival_s)}
    index = np.array([row_of[float(a)] for a in shot.rows.arrival_s])
    now_s, until_s = shot.now_s, shot.now_s + policy.horizon_s
    first_s, finish_s = result.first_token_s[index], result.finish_s[index]
    both: BoolArray = (w.phase == DONE) & (finish_s < until_s)
    more = np.maximum(workload.output_tokens[index] - 1, 1)
    tpot_s = (finish_s - first_s) / more
    weighed = shot.rows.weight > 0
    return Errors(
        ttft_s=(w.first_s - first_s)[both],
        tpot_s=((w.finish_s - w.first_s) / more - tpot_s)[both],
        e2e_s=(w.finish_s - finish_s)[both],
        ahead_s=(finish_s - now_s)[both],
        real_tpot_s=tpot_s[both],
        ended=(int((w.phase == DONE).sum()), int((finish_s < until_s).sum())),
        decided=(chance - result.met(workload)[index])[both & weighed],
        foretold=float(chance[weighed].mean()),
        met=float(result.met(workload)[index][weighed].mean()),
        rows=int(weighed.sum()),
    )


def summary(found: list[Errors]) -> dict[str, float]:
    """Relative errors of the ends, in percent of how far ahead they were, and attainment."""

    def quantile(values: list[FloatArray], q: float) -> float:
        together = np.concatenate(values)
        return float(np.quantile(together, q)) if len(together) else float("nan")

    ends = [100.0 * np.abs(e.e2e_s) / e.ahead_s for e in found]
    firsts = [100.0 * np.abs(e.ttft_s) / e.ahead_s for e in found]
    paces = [100.0 * np.abs(e.tpot_s) / np.maximum(e.real_tpot_s, 1e-3) for e in found]
    return {
        "moments": len(found),
        "rows": int(sum(len(e.e2e_s) for e in found)),
        "ended_ratio": sum(e.ended[0] for e in found) / max(1, sum(e.ended[1] for e in found)),
        "ttft_p50": quantile(firsts, 0.5),
        "ttft_p95": quantile(firsts, 0.95),
        "tpot_p50": quantile(paces, 0.5),
        "tpot_p95": quantile(paces, 0.95),
        "e2e_p50": quantile(ends, 0.5),
        "e2e_p95": quantile(ends, 0.95),
        "decided": 100.0 * float(np.mean(np.concatenate([e.decided for e in found]))),
        "bias": 100.0 * float(np.mean([e.foretold - e.met for e in found])),
        "worst": 100.0 * float(np.max([abs(e.foretold - e.met) for e in found])),
    }


PLANS = {"order": {}, "slots": {"slots": True}, "limits": {"limits": True}}


def study(
    shape: str,
    workload: str,
    load: float,
    seeds: int,
    requests: int,
    horizon_s: float,
    moments: tuple[float, ...] = (0.3, 0.6),
) -> dict[str, list[Errors]]:
    """Errors by kind of plan."""
    found: dict[str, list[Errors]] = {kind: [] for kind in PLANS}
    for seed in range(seeds):
        sim, profile = build(Run(shape, workload, load, "oracle", seed, requests, "fcfs"))
        for share in moments:
            at_s = share * float(sim.arrival_s[-1])
            for kind, parts in PLANS.items():
                rng = np.random.default_rng((seed, int(100 * share)))
                policy = OnePlan(sim, profile, at_s, horizon_s, rng, **parts)
                if (errors := errors_at(sim, profile, policy)) is not None:
                    found[kind].append(errors)
    return found


def main() -> None:
    """The table over shapes, and the figures as JSON."""
    shapes = [name for name in profile_names() if not name.startswith(KEPT_ASIDE)]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", nargs="+", default=shapes)
    parser.add_argument("--workloads", nargs="+", default=["mixed", "agents", "documents"])
    parser.add_argument("--load", type=float, default=1.3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--horizon-s", type=float, default=10.0)
    args = parser.parse_args()
    make_policy("fcfs").warm_up()
    lines, table = [], []
    for shape in args.shapes:
        for workload in args.workloads:
            found = study(shape, workload, args.load, args.seeds, args.requests, args.horizon_s)
            for kind, errors in found.items():
                if not errors:
                    continue
                figures = summary(errors)
                lines.append({"shape": shape, "workload": workload, "plan": kind} | figures)
                table.append(
                    [shape, workload, kind, figures["rows"], f"{figures['ended_ratio']:.3f}"]
                    + [
                        f"{figures[f'{name}_p50']:.2f} / {figures[f'{name}_p95']:.2f}"
                        for name in ("ttft", "tpot", "e2e")
                    ]
                    + [f"{figures[name]:+.2f}" for name in ("decided", "bias", "worst")]
                )
    head = ["shape", "workload", "plan", "rows", "ended, foretold / real"]
    head += [f"{name} error %, p50 / p95" for name in ("TTFT", "TPOT", "e2e")]
    head += ["attainment of these, points", "of everybody", "worst moment"]
    print_table(head, table)
    finish("rollout_error", lines)


if __name__ == "__main__":
    main()
