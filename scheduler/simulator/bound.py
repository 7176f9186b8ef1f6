"""How much any scheduler could attain: a linear-programming relaxation.

Time is cut into intervals; the slots are one pool that gives ``slots`` slot-seconds a second.
A request may use the pool between its arrival and the time its objectives leave, in any parts,
at any speed up to one slot, and counts by the fraction of its work that is done there. Slot
time is charged at its cheapest: the per-token share of a full batch, without the context term,
the prefill's stall included. So every schedule of the engine is a feasible point and the
optimum is an upper bound on the attainment (up to the batch being shared more cheaply than
when full, which no schedule under load can use for long). Of an engine with a prefix cache every
shared beginning counts as computed already, and drafts as accepted at their mean.

A first-token objective asks only for a start in time: the rest of the work may follow at the
slowest pace an engine that decodes everything it runs in every step keeps up on the whole,
``SLOWEST`` times a full batch's duration.
"""

from __future__ import annotations

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.sim_workload import SimWorkload

SLOWEST = 1.25


def service_s(workload: SimWorkload, profile: EngineProfile) -> tuple[FloatArray, FloatArray]:
    """(shortest possible duration alone, slot-seconds in the cheapest full batch) a request."""
    model, slots = profile.scaled_step_time, profile.capacity.max_num_seqs
    yielded = 1.0 if profile.speculation is None else profile.speculation.accepted_tokens
    decodes = (workload.output_tokens.astype(np.float64) - 1.0) / yielded
    prefill = model.prefill_token_s * _computed_tokens(workload, profile)
    # the first token comes of the step that ends the prompt
    alone = prefill + model.base_s + decodes * model.step_s(0.0, 1.0, 0.0)
    token_s = model.step_s(0.0, slots, 0.0)
    return alone, (1.0 + decodes) * token_s + prefill * slots


def _computed_tokens(workload: SimWorkload, profile: EngineProfile) -> FloatArray:
    """The least of each prompt that the engine computes: one token, and what nobody shares."""
    prompt = workload.prompt_tokens.astype(np.float64)
    ids, shared = workload.prefix_id, workload.prefix_tokens
    if profile.prefix_cache is None or ids is None or shared is None:
        return prompt
    return np.maximum(1.0, prompt - np.where(ids == NO_PREFIX, 0, shared))


def attainment_bound(
    workload: SimWorkload, profile: EngineProfile, *, intervals: int = 200
) -> float:
    """Upper bound on the share of requests that meet their objectives; solved by HiGHS.

    A request whose window cannot hold its work counts for nothing when even alone on the
    engine it is late. Best-effort requests count as met. Raises RuntimeError when the solver
    fails.
    """
    from scipy.optimize import linprog
    from scipy.sparse import coo_matrix, vstack

    n = len(workload)
    if n == 0:
        return 1.0
    slots = float(profile.capacity.max_num_seqs)
    alone_s, slot_s = service_s(workload, profile)
    arrival = workload.arrival_s
    token_limit = arrival + workload.ttft_s + SLOWEST * slot_s
    close = np.minimum(token_limit, arrival + workload.e2e_s)
    free = ~np.isfinite(close)
    possible = ~free & (alone_s <= workload.e2e_s)
    if not possible.any():
        return float(free.mean())
    rows = np.flatnonzero(possible)
    end_s = float(close[rows].max())
    edges = np.linspace(float(arrival[0]), end_s, intervals + 1)
    width = edges[1] - edges[0]
    first = np.clip(((arrival[rows] - edges[0]) / width).astype(int), 0, intervals - 1)
    last = np.clip(np.ceil((close[rows] - edges[0]) / width).astype(int), 1, intervals)
    counts = last - first
    request = np.repeat(np.arange(len(rows)), counts)
    interval = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
    variables = len(request)
    # variable v: share of its work a request does in an interval
    work = slot_s[rows][request]
    pool = coo_matrix((work, (interval, np.arange(variables))), (intervals, variables))
    once = coo_matrix((np.ones(variables), (request, np.arange(variables))), (len(rows), variables))
    solved = linprog(
        -np.ones(variables),
        A_ub=vstack([pool, once]).tocsr(),
        b_ub=np.concatenate([np.full(intervals, slots * width), np.ones(len(rows))]),
        bounds=(0.0, 1.0),
        method="highs",
    )
    if not solved.success:
        raise RuntimeError(f"the bound's linear programme failed: {solved.message}")
    return min(1.0, float((free.sum() - solved.fun) / n))
