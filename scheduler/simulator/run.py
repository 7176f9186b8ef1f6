"""Play a workload against a policy on the simulated engine."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray
from lengthwise.scheduler.guards.admission import Action, AdmissionControl
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.plan.pacing import ArrivalRate, ReplanGate
from lengthwise.scheduler.policies.policy import Learns, Policy
from lengthwise.scheduler.problem import NO_PREFIX, Problem, RequestArrays
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator import engine as e
from lengthwise.scheduler.simulator.prefix_cache import (
    PrefixCacheState,
    cached_tokens,
    empty_cache,
    give_up,
)
from lengthwise.scheduler.simulator.sim_workload import SimResult, SimWorkload, met_of

PlanCost = Literal["free", "measured"]


def _rows(
    workload: SimWorkload,
    index: IntArray,
    state: IntArray,
    times: FloatArray,
    queued_s: FloatArray,
    cache: PrefixCacheState | None,
    waiting: bool,
) -> RequestArrays:
    rows = RequestArrays(
        arrival_s=workload.arrival_s[index],
        queued_s=queued_s[index],
        prompt_tokens=workload.prompt_tokens[index].astype(np.float64),
        prefill_left_tokens=state[index, e.LEFT].astype(np.float64),
        generated_tokens=state[index, e.GENERATED].astype(np.float64),
        first_token_s=times[index, e.FIRST],
        ttft_s=workload.ttft_s[index],
        tpot_s=workload.tpot_s[index],
        e2e_s=workload.e2e_s[index],
        weight=workload.weight[index],
        class_id=workload.class_id[index],
        quantiles=workload.quantiles[index],
    )
    if cache is None:
        return rows
    cached = cache.shared[index].astype(np.float64)
    if waiting:
        cached = cached_tokens(cache, index, state[index, e.LEFT])
    return replace(
        rows,
        prefill_left_tokens=rows.prefill_left_tokens - (cached if waiting else 0.0),
        cached_tokens=cached,
        prefix_id=cache.prefix[index],
        prefix_tokens=cache.shareable[index].astype(np.float64),
    )


def _own_objectives(workload: SimWorkload) -> SimWorkload:
    """The workload with objectives that may be taken from it: what the policy is told."""
    return replace(
        workload,
        ttft_s=workload.ttft_s.copy(),
        tpot_s=workload.tpot_s.copy(),
        e2e_s=workload.e2e_s.copy(),
    )


def simulate(
    workload: SimWorkload,
    policy: Policy,
    profile: EngineProfile,
    *,
    max_wait_s: float = 120.0,
    plan_cost: PlanCost = "free",
    plan_share: float = 0.1,
    fairness: TenantFairness | None = None,
    admission: AdmissionControl | None = None,
    admission_policy: Policy | None = None,
    believed: EngineProfile | None = None,
) -> SimResult:
    """Serve the whole workload; deterministic when the policy is and ``plan_cost`` is "free".

    "free" paces plans by the policy's nominal time and charges nothing; "measured" paces by
    the time each plan took and delays the engine by it. Until the next plan newcomers stand at
    the back of the queue, requests the engine preempted at its front. ``admission`` judges
    newcomers by the orders of ``admission_policy``, another instance of the policy, since
    policies remember. ``believed`` is the profile the policy is told, where it is not the true one.
    """
    n = len(workload)
    known = workload if admission is None else _own_objectives(workload)
    actions: list[Action] = []
    total = workload.prompt_tokens + workload.output_tokens
    if n and total.max() > profile.capacity.kv_tokens:
        raise ValueError(
            f"a request needs {total.max()} tokens of KV cache, "
            f"the profile has {profile.capacity.kv_tokens}"
        )
    state = np.zeros((n, 5), dtype=np.int64)
    state[:, e.LEFT] = state[:, e.PROMPT] = workload.prompt_tokens
    state[:, e.ANSWER] = workload.output_tokens
    times = np.full((n, 3), np.nan)
    capacity = profile.capacity
    budget = capacity.max_num_batched_tokens
    limits = np.array([capacity.max_num_seqs, capacity.kv_tokens, budget, budget])
    assumed = believed or profile
    coefficients = np.array(profile.scaled_step_time.coefficients)
    running = np.empty(capacity.max_num_seqs + 1, dtype=np.int64)
    queue = np.empty(n, dtype=np.int64)
    clock = np.zeros(7)
    cache = _cache(workload, profile)
    speculation = None
    if profile.speculation is not None:
        speculation = e.SpeculationState(
            float(profile.speculation.accepted_tokens),
            1 + profile.speculation.draft_tokens,
            owed=np.zeros(n),
            gained=np.zeros(n, dtype=np.int64),
        )
    gate, rate = ReplanGate(plan_share), ArrivalRate()
    plan_s: list[float] = []
    queue_len: list[tuple[float, int]] = []
    queued_s = workload.arrival_s.copy()
    yielded = np.zeros(n, dtype=np.bool_)  # queues because a plan took its slot
    yields = 0
    running_count = queue_count = arrived = 0

    def split_queue() -> tuple[IntArray, IntArray]:
        """Whom the engine preempted, before any plan as it holds work done; and the others."""
        index = queue[:queue_count]
        recovers = (state[index, e.GENERATED] > 0) & ~yielded[index]
        return index[recovers], index[~recovers]

    told = np.zeros(n, dtype=np.bool_)  # whose outcome the policy knows

    def tell_outcomes() -> None:
        if not isinstance(policy, Learns):
            return
        rows = np.flatnonzero(~told[:arrived] & ~np.isnan(times[:arrived, e.FINISH]))
        met = met_of(
            workload, rows, times[rows, e.FIRST], times[rows, e.FINISH], state[rows, e.GENERATED]
        )
        told[rows] = True
        for arrival_s, kept in zip(workload.arrival_s[rows].tolist(), met.tolist(), strict=True):
            policy.finished(arrival_s, kept)

    def picture(now_s: float, waiting: IntArray, recovering: IntArray) -> Problem:
        return Problem(
            now_s=now_s,
            levels=workload.levels,
            waiting=_rows(known, waiting, state, times, queued_s, cache, True),
            running=_rows(known, running[:running_count], state, times, queued_s, cache, False),
            capacity=assumed.capacity,
            step_time=assumed.scaled_step_time,
            max_wait_s=max_wait_s,
            arrival_rate_rps=rate.rps(now_s),
            recovering=_rows(known, recovering, state, times, queued_s, cache, True),
            tokens_per_step=speculation.accepted if speculation else 1.0,
            decode_budget_tokens=speculation.budget_tokens if speculation else 1,
        )

    while arrived < n or running_count or queue_count:
        now_s = float(clock[e.NOW])
        if not running_count and not queue_count:
            clock[e.NOW] = now_s = max(now_s, float(workload.arrival_s[arrived]))
        if not queue_count:  # whom they were to protect no plan knows any more
            limits[0], limits[3] = capacity.max_num_seqs, budget
        while arrived < n and workload.arrival_s[arrived] <= now_s:
            queue[queue_count] = arrived
            queue_count += 1
            rate.add(float(workload.arrival_s[arrived]))
            if admission is not None and admission_policy is not None:
                verdict = admission.decide(
                    picture(now_s, *split_queue()[::-1]),
                    lambda problem: admission_policy(problem).order,
                    int(workload.class_id[arrived]),
                )
                actions.append(verdict.action)
                if verdict.action == "shed":
                    queue_count -= 1
                elif verdict.action == "downgrade":
                    for limits_s in (known.ttft_s, known.tpot_s, known.e2e_s):
                        limits_s[arrived] = np.inf
            arrived += 1
            gate.mark()
        if queue_count > 0 and gate.due(now_s):
            recovering, plannable = split_queue()
            tell_outcomes()
            problem = picture(now_s, plannable, recovering)
            began = time.perf_counter()
            if fairness is not None and workload.tenant_id is not None:
                plan = fairness.plan(
                    policy,
                    problem,
                    workload.tenant_id[plannable],
                    workload.tenant_id[running[:running_count]],
                )
            else:
                plan = policy(problem)
            elapsed_s = time.perf_counter() - began
            plan_s.append(elapsed_s)
            queue_len.append((now_s, queue_count))
            limits[0] = min(capacity.max_num_seqs, plan.max_running or capacity.max_num_seqs)
            limits[3] = budget if plan.max_prefill_tokens is None else plan.max_prefill_tokens
            victims = running[plan.preempt]
            kept = np.delete(running[:running_count], plan.preempt)
            running_count, queue_count = len(kept), queue_count + len(victims)
            running[:running_count] = kept
            # their KV memory goes: what they have is computed again when they resume, but for
            # what a prefix cache still holds by then
            if cache is not None:
                give_up(cache, victims, state[victims, e.COMPUTED])
            state[victims, e.LEFT] = state[victims, e.PROMPT] + state[victims, e.GENERATED]
            state[victims, e.COMPUTED] = 0
            queued_s[victims], yielded[victims] = now_s, True
            yields += len(victims)
            queue[:queue_count] = np.concatenate([recovering, plannable[plan.order], victims])
            if plan_cost == "measured":
                clock[e.NOW] += elapsed_s
                gate.planned(now_s, elapsed_s)
            else:
                gate.planned(now_s, policy.nominal_s)
        next_s = float(workload.arrival_s[arrived]) if arrived < n else np.inf
        running_count, queue_count = e.run_until(
            min(next_s, gate.next_s()) if queue_count > 0 else next_s,
            gate.not_before_s,
            coefficients,
            limits,
            state,
            times,
            running,
            running_count,
            queue,
            queue_count,
            clock,
            cache,
            speculation,
        )
        yielded[running[:running_count]] = False
        gate.mark()
    return SimResult(
        admitted_s=times[:, e.ADMITTED],
        first_token_s=times[:, e.FIRST],
        finish_s=times[:, e.FINISH],
        output_tokens=state[:, e.GENERATED],
        plan_s=plan_s,
        queue_len=queue_len,
        preemptions=int(clock[e.PREEMPTIONS]),
        yields=yields,
        steps=int(clock[e.STEPS]),
        prefilled_tokens=int(clock[e.PREFILLED]),
        kv_peak_tokens=int(clock[e.KV_PEAK]),
        end_s=float(clock[e.NOW]),
        cached_tokens=int(clock[e.CACHED]),
        actions=tuple(actions),
    )


def _cache(workload: SimWorkload, profile: EngineProfile) -> PrefixCacheState | None:
    """The profile's prefix cache, empty; None where it has none."""
    if profile.prefix_cache is None:
        return None
    ids, tokens = workload.prefix_id, workload.prefix_tokens
    if ids is None or tokens is None:
        ids, tokens = np.full(len(workload), NO_PREFIX), np.zeros(len(workload), dtype=np.int64)
    return empty_cache(profile.prefix_cache.block_tokens, profile.capacity.kv_tokens, ids, tokens)
