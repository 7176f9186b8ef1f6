"""Fairness between tenants: a tenant that floods pays with its own requests.

The planner serves by value per slot-second and knows nothing of who asks, so a tenant with many
requests gets many slots. Here each waiting request's value is scaled by what its tenant may claim:

    factor_t = min(1, fair_t / demand_t) ** severity,      the largest factor made 1

- demand: slot-seconds a tenant wants within a horizon: those it waits for, those left to what it
  runs, and those it had lately (its running requests x time, decayed over the horizon);
- fair: the max-min fair shares of the pool's slot-seconds in the horizon: who asks for less than
  an equal (or weighted) part gets all it asks for, the rest is shared among the others.

So with one tenant, or while everybody's demand fits, nothing changes; under a flood the requests
of the flooder are the first that the selection drops, and what the others leave is still its own.

The bound on waiting would let a flood in by another door: its oldest requests, overdue, would go
before everybody's. So when someone is overdue, tenants take turns by what they had lately, as
virtual token counters do (VTC, arXiv 2401.00588), and within a tenant its overdue go first. VTC
turns all the time protect as well but undo the planner's order: measured, they cost 1 to 3 points
of everybody's attainment where nobody floods.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import BoolArray, FloatArray, IntArray
from lengthwise.scheduler.plan.starts.wait_bound import overdue_first, unless_bound
from lengthwise.scheduler.problem import Plan, Problem, RequestArrays

_LEAST_FACTOR = 1e-6  # a value must stay a value: 0 would mean best effort
_UNBOUNDED_S = 1e12
_LONGEST_GAP_S = 1.0  # between two problems; a longer one means that nobody waited
_TURNS = 2  # tenants take turns over this many fillings of the slots; the next plan comes soon


def fair_shares(demand: FloatArray, capacity: float, weight: FloatArray) -> FloatArray:
    """Weighted max-min fair shares ``(k,)`` of ``capacity`` for ``demand`` ``(k,)``.

    Nobody gets more than asked; whoever gets less gets at least as much per weight as anybody.
    Raises ValueError for a negative demand or a weight that is not positive.
    """
    if (demand < 0).any() or not (weight > 0).all():
        raise ValueError("demands must not be negative and weights must be positive")
    share = np.zeros(len(demand))
    left, weight_left = float(capacity), float(weight.sum())
    for t in np.argsort(demand / weight, kind="stable"):
        share[t] = min(float(demand[t]), max(left, 0.0) * float(weight[t]) / weight_left)
        left -= share[t]
        weight_left = max(weight_left - float(weight[t]), 1e-300)
    return share


def tenant_factors(
    demand: FloatArray, capacity: float, weight: FloatArray, severity: float = 1.0
) -> FloatArray:
    """Factor ``(k,)`` in (0, 1] on the values of each tenant's requests; 1 for the best placed."""
    wanted = demand > 0
    factor = np.ones(len(demand))
    if wanted.sum() < 2:
        return factor
    share = fair_shares(demand[wanted], capacity, weight[wanted])
    claim = (share / demand[wanted]) ** severity
    factor[wanted] = np.maximum(claim / max(float(claim.max()), 1e-300), _LEAST_FACTOR)
    return factor


def adjusted_weights(weight: FloatArray, tenant_id: IntArray, factor: FloatArray) -> FloatArray:
    """Weights ``(n,)`` scaled by the factor of each row's tenant ``(k,)``."""
    return weight * factor[tenant_id]


def slot_seconds(problem: Problem, rows: RequestArrays) -> FloatArray:
    """Slot-seconds ``(n,)`` still to come of each row: a quick estimate, in a full engine."""
    if len(rows) == 0:
        return np.zeros(0)
    levels = problem.levels
    edges = np.concatenate([[0.0], (levels[1:] + levels[:-1]) / 2.0, [1.0]])
    mean = rows.quantiles @ np.diff(edges)
    left = np.maximum(mean - rows.generated_tokens, 0.25 * mean)
    slots = float(problem.capacity.max_num_seqs)
    context = float((rows.prompt_tokens + mean / 2.0).mean())
    step_s = problem.step_time.step_s(0.0, slots, slots * context)
    # a prompt holds every slot up while it is computed
    stall_s = slots * problem.step_time.prefill_token_s * rows.prefill_left_tokens
    return np.maximum(left, 1.0) * step_s + stall_s


class TenantFairness:
    """Keeps what each tenant had lately; makes problems fair, and the bound on waiting in plans.

    Tenant ids are small integers; an id with no request waiting or running is forgotten, so it
    may be given to another tenant. ``weight`` is that of each id, 1 beyond its end.
    """

    def __init__(self, horizon_s: float = 10.0, severity: float = 2.0) -> None:
        if horizon_s <= 0 or severity <= 0:
            raise ValueError(
                f"horizon_s and severity must be positive, got {horizon_s} and {severity}"
            )
        self.horizon_s = horizon_s
        self.severity = severity
        self.factor: FloatArray = np.ones(0)
        self.tenants = 0
        self._weight: FloatArray = np.ones(0)
        self._work_s: FloatArray = np.zeros(0)
        self._wanted_s: FloatArray = np.zeros(0)
        self._served_s: FloatArray = np.zeros(0)
        self._seen_s = np.inf

    def plan(
        self,
        policy: Callable[[Problem], Plan],
        problem: Problem,
        waiting_tenant: IntArray,
        running_tenant: IntArray,
        weight: FloatArray | None = None,
    ) -> Plan:
        """The policy's plan of the adjusted problem, settled."""
        plan = policy(self.adjust(problem, waiting_tenant, running_tenant, weight))
        order = self.settle(problem, waiting_tenant, plan.order)
        late_s = plan.latest_start_s
        if not np.array_equal(order, plan.order):
            late_s = np.empty(0)  # whose turn has come at a tenant's bound is not put off
        elif len(late_s):  # nor who comes to the bound itself, which the policy was not told
            late_s = unless_bound(late_s, problem.waiting.queued_s, problem.max_wait_s)
        return replace(plan, order=order, latest_start_s=late_s)

    def adjust(
        self,
        problem: Problem,
        waiting_tenant: IntArray,
        running_tenant: IntArray,
        weight: FloatArray | None = None,
    ) -> Problem:
        """The problem with the values of waiting requests made fair; itself with one tenant.

        ``waiting_tenant`` and ``running_tenant`` are the rows' tenant ids. The bound on waiting is
        taken out: ``settle`` puts it into the plan.
        """
        k = 1 + max(int(waiting_tenant.max(initial=0)), int(running_tenant.max(initial=0)))
        waiting_s = slot_seconds(problem, problem.waiting)
        running_s = slot_seconds(problem, problem.running)
        wanted_s = np.zeros(k)
        wanted_s += np.bincount(waiting_tenant, waiting_s, minlength=k)
        wanted_s += np.bincount(running_tenant, running_s, minlength=k)
        self._wanted_s = wanted_s
        active = wanted_s > 0
        self._serve(problem.now_s, active, np.bincount(running_tenant, minlength=k))
        self._work_s = waiting_s
        self._weight = _padded(np.ones(0) if weight is None else weight, k, 1.0)
        self.tenants = int(active.sum())
        self.factor = np.ones(k)
        if self.tenants < 2:
            return problem
        demand = np.where(active, wanted_s + self._served_s, 0.0)
        capacity = problem.capacity.max_num_seqs * self.horizon_s
        self.factor = tenant_factors(demand, capacity, self._weight, self.severity)
        scaled = adjusted_weights(problem.waiting.weight, waiting_tenant, self.factor)
        waiting = replace(problem.waiting, weight=scaled)
        return replace(problem, waiting=waiting, max_wait_s=_UNBOUNDED_S)

    def settle(self, problem: Problem, waiting_tenant: IntArray, order: IntArray) -> IntArray:
        """The plan's order with the bound on waiting kept, tenant by tenant.

        ``problem`` is the one before ``adjust``, ``order`` the answer to the adjusted one. When
        someone is overdue, each tenant's overdue go first among its own, and tenants take turns,
        who had least by weight next.
        """
        if self.tenants < 2:
            return order
        slots = problem.capacity.max_num_seqs
        gap_s = float(self._work_s.sum()) / max(len(order), 1) / slots
        bounded, overdue = overdue_first(
            order, problem.waiting.queued_s, problem.now_s, problem.max_wait_s, gap_s
        )
        if overdue == 0:
            return order
        strands: dict[int, list[int]] = {}
        for row in bounded:
            strands.setdefault(int(waiting_tenant[row]), []).append(int(row))
        # who had as little, as on an engine of few slots, is told apart by what it wants
        share = 1.0 / self._weight
        had = [
            (float(self._served_s[t] * share[t]), float(self._wanted_s[t] * share[t]), t)
            for t in strands
        ]
        heapq.heapify(had)
        taken: list[int] = []
        places = dict.fromkeys(strands, 0)
        while had and len(taken) < _TURNS * slots:
            served, wanted, t = heapq.heappop(had)
            row = strands[t][places[t]]
            places[t] += 1
            taken.append(row)
            if places[t] < len(strands[t]):
                heapq.heappush(had, (served + float(self._work_s[row] * share[t]), wanted, t))
        head = np.array(taken, dtype=np.int64)
        rest = np.ones(len(order), dtype=np.bool_)
        rest[head] = False
        return np.concatenate([head, bounded[rest[bounded]]])

    def _serve(self, now_s: float, active: BoolArray, running: IntArray) -> None:
        """Add the slot-seconds since the last problem, as if what runs now had run all along."""
        elapsed_s = max(now_s - self._seen_s, 0.0)
        self._seen_s = now_s
        before = _padded(self._served_s, len(active), 0.0)
        gained = running * min(elapsed_s, _LONGEST_GAP_S)
        decay = float(np.exp(-elapsed_s / self.horizon_s))
        self._served_s = np.where(active, before * decay + gained, 0.0)


def _padded(values: FloatArray, k: int, fill: float) -> FloatArray:
    padded = np.full(k, fill)
    padded[: min(k, len(values))] = values[:k]
    return padded


def jain_index(values: FloatArray) -> float:
    """Jain's index of what tenants got, (Σx)² / (n·Σx²): 1 when equal, 1/n when one has all.

    1 for no tenants, or when nobody got anything. Source: Jain, Chiu and Hawe, DEC-TR-301, 1984.
    """
    squares = float((values**2).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares > 0 else 1.0
