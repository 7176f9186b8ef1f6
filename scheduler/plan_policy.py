"""Prototype of the sa policy on the honest rollout."""
from __future__ import annotations

import time
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from scheduler import heuristics
from scheduler.jobs import prepare
from scheduler.plan.forecast import ArrivalForecast, concatenated
from scheduler.plan.rollout import work_for
from scheduler.plan.rows import snapshot
from scheduler.plan.search import UNIFORMS, YIELD, LIMIT, BUDGET, SWAP, INSERT, BLOCK, anneal, value_of
from scheduler.plan.value import Objective
from scheduler.problem import Plan, Problem
from scheduler.selection import select
from scheduler.starvation import bounded

LATE_RULES = ("fcfs", "edf", "feasible-sjf", "feasible-edf")


@dataclass(frozen=True, slots=True)
class Settings:
    horizon_s: float = 0.0  # 0: from slack
    horizon_share: float = 1.0
    most_expected: int = 400
    start_quantile: float = 0.7
    spread: float = 0.05
    tpot_spread: float = 0.03
    latency: float = 0.02
    recompute: float = 0.0
    tokens: float = 0.0
    window: int = 48
    reach: int = 128
    slots: bool = True
    limit: bool = True
    budget: bool = True
    orders: bool = True
    search: bool = True
    descent: bool = True
    temp: float = 0.3
    keep: float = 0.2  # gain over the simplest plan needed


class NewPolicy:
    name = "sa"
    nominal_s = 0.02

    def __init__(self, settings=Settings(), seed=0, iterations=24):
        self.s, self.iterations = settings, iterations
        self.rng = np.random.default_rng(seed)
        self.forecast = ArrivalForecast()
        self.last = (np.inf, np.inf)
        self.stats = {}
        self.evals = 0

    def __call__(self, problem: Problem) -> Plan:
        began = time.perf_counter()
        s = self.s
        n, r = len(problem.waiting), len(problem.running)
        if n == 0:
            return Plan(np.empty(0, dtype=np.int64))
        self.forecast.observe(problem)
        w = problem.waiting
        # horizon
        jobs0 = None
        slack = self.forecast.mean_slack(problem) if s.horizon_s <= 0 else s.horizon_s
        horizon = float(np.clip(s.horizon_share * slack, 2.0, 40.0))
        coming = self.forecast.expected(problem, horizon, s.most_expected)
        queue = concatenated(w, coming)
        everybody = concatenated(problem.running, queue)
        shot = snapshot(problem, everybody, r + n, s.start_quantile)
        k = len(everybody)
        work, chance = work_for(k), np.zeros(k)
        given = np.zeros(r, dtype=np.int64)
        until = problem.now_s + horizon
        unit = max(1e-3, float(shot.rows.need[r:].mean()) * shot.token_s)
        o = Objective(s.spread, s.tpot_spread, s.latency, unit, s.recompute, s.tokens, max(1.0, float(shot.rows.need[r:].mean())))
        slots, batched = shot.engine.slots, shot.engine.batched_tokens
        asked = replace(problem, waiting=queue)
        jobs = prepare(asked)

        def val(order, skip, cap, budget, g=given):
            self.evals += 1
            return value_of(shot.engine, shot.rows, r, r + n, order, g, np.array([cap, budget]), skip,
                            problem.now_s, until, o, work, chance)

        cands = []
        for name, rule in heuristics.RULES.items():
            if name in ("hrrn", "priority", "llf"):
                continue
            order = rule(asked, jobs)
            cands.append((name, order, name.startswith("feasible")))
            if not name.startswith("feasible") and name != "sjf":
                cands.append((name + "+skip", order, True))
        # selection
        slot_s = shot.rows.need[r:] * shot.token_s + slots * shot.rows.left[r:] * shot.engine.prefill_token_s
        by = np.argsort(shot.rows.latest_s[r:], kind="stable")
        feas = shot.rows.latest_s[r:] >= problem.now_s
        val_w = shot.rows.weight[r:] * feas
        taken, _ = select(shot.rows.latest_s[r:], slot_s, val_w, by, problem.now_s, slots)
        rank = np.where(taken > 0, 0, np.where(feas, 1, 2))
        order = np.lexsort((slot_s * (rank == 2), np.where(rank < 2, shot.rows.latest_s[r:], 0), rank))
        cands.append(("selection", order, True))
        dens = np.lexsort((slot_s / np.maximum(val_w, 1e-9),))
        cands.append(("density", dens, True))
        best = None
        first = 0
        for name, order, skip in cands:
            head, overdue = bounded_all(problem, jobs, order, n)
            rows = head + r
            v = val(rows, skip, slots, batched)
            if best is None or v > best[0]:
                best = (v, name, rows, skip, slots, batched)
                first = overdue
        base_v = best[0]
        if not s.descent and (self.last[0] < slots or self.last[1] < batched):
            for name, order, skip in cands:
                head, overdue = bounded_all(problem, jobs, order, n)
                x = val(head + r, skip, min(self.last[0], slots), min(self.last[1], batched))
                if x > best[0]:
                    best = (x, name, head + r, skip, min(self.last[0], slots), min(self.last[1], batched))
                    first = overdue
        # limits
        v, name, rows, skip, cap, budget = best
        options = []
        if s.descent and (s.limit or s.budget):
            caps = [slots]
            if s.limit:
                full = min(slots, r + n)
                caps += [max(1.0, float(int(full * f))) for f in (0.85, 0.7, 0.5, 0.35)]
                if self.last[0] < slots:
                    caps.append(self.last[0])
            buds = [batched]
            if s.budget:
                buds += [b for b in (1024.0, 512.0, 256.0, 128.0) if b < batched]
                if self.last[1] < batched:
                    buds.append(self.last[1])
            # coordinate descent
            for _ in range(2):
                changed = False
                for b in buds:
                    if b == budget: continue
                    x = val(rows, skip, cap, b)
                    if x > v + 1e-9:
                        v, budget, changed = x, b, True
                for c in caps:
                    if c == cap: continue
                    x = val(rows, skip, c, budget)
                    if x > v + 1e-9:
                        v, cap, changed = x, c, True
                if not changed:
                    break
            # with limits other orders may be better
            if cap < slots or budget < batched:
                for nm, order, sk in cands:
                    if nm == name: continue
                    head, overdue = bounded_all(problem, jobs, order, n)
                    x = val(head + r, sk, cap, budget)
                    if x > v:
                        v, name, rows, skip, first = x, nm, head + r, sk, overdue
        limits = np.array([cap, budget])
        order = rows.copy()
        start_v = v
        if s.search and self.iterations:
            kinds = []
            if s.orders: kinds += [SWAP, INSERT, BLOCK]
            if s.limit: kinds.append(LIMIT)
            if s.budget: kinds.append(BUDGET)
            val(order, skip, cap, budget)
            lost = np.flatnonzero((chance[:r] < 0.02)) if s.slots else np.empty(0, dtype=np.int64)
            if len(lost): kinds.append(YIELD)
            g = given.copy()
            temp = s.temp
            v = anneal(shot.engine, shot.rows, r, r + n, order, g, limits, skip, problem.now_s, until, o,
                       work, chance, v, first, s.window, s.reach, np.array(kinds), lost, temp,
                       self.rng.random((self.iterations, UNIFORMS)))
            given = g
            self.evals += self.iterations
        self.last = (limits[0], limits[1])
        key = name
        self.stats[key] = self.stats.get(key, 0) + 1
        self.stats["gain"] = self.stats.get("gain", 0) + v - start_v
        mine = order[order < r + n] - r
        return Plan(mine, -v, -base_v, 0, time.perf_counter() - began, None, np.flatnonzero(given),
                    None if limits[0] >= slots else int(limits[0]),
                    None if limits[1] >= batched else int(limits[1]))

    def warm_up(self):
        pass


def bounded_all(problem, jobs, order, n):
    """Overdue waiting rows first; stand-ins are never overdue."""
    from scheduler.starvation import find_overdue
    over = find_overdue(problem.waiting.queued_s, problem.now_s, problem.max_wait_s, jobs.release_gap_s)
    c = int(over.sum())
    if not c:
        return order, 0
    full = np.zeros(len(order), dtype=bool); full[:n] = over
    rows = np.flatnonzero(over)
    oldest = rows[np.argsort(problem.waiting.queued_s[rows], kind="stable")]
    return np.concatenate([oldest, order[~full[order]]]), c
