"""The published method, as far as it is known: annealing over lock-step batches.

arXiv 2504.14966. Requests are put in a priority order and cut into batches of at most b_max; a
batch starts when the one before has ended, and lasts as long as its longest request. Lengths
are one number a request (the class mean when the caller gives Gaussian class rows). The search
maximises G = met / total latency with the moves squeezeLastIter, delayNextIter and
randSwapping, from two starts. The hyper-parameters are recalled, not verified, and so are
parameters; so is what scale G has in the acceptance rule (here 1/s, as given).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lengthwise.data.arrays import FloatArray, IntArray, njit
from lengthwise.scheduler.plan import jobs as k
from lengthwise.scheduler.plan.jobs import Jobs, prepare
from lengthwise.scheduler.plan.starts.wait_bound import bounded
from lengthwise.scheduler.problem import Plan, Problem, warm_up_problem


@dataclass(frozen=True, slots=True)
class PaperSettings:
    """T0, T_thres, iter and τ of Algorithm 1; ``log_g`` anneals log G instead of G."""

    t_first: float = 500.0
    t_last: float = 20.0
    steps_per_temperature: int = 100
    decay: float = 0.95
    log_g: bool = False

    def __post_init__(self) -> None:
        if not (0 < self.t_last <= self.t_first and 0 < self.decay < 1):
            raise ValueError(
                "need 0 < t_last <= t_first and 0 < decay < 1, got "
                f"{self.t_last}, {self.t_first}, {self.decay}"
            )


@njit
def batches_g(
    engine: FloatArray, jobs: FloatArray, tokens: FloatArray, order: IntArray, sizes: IntArray
) -> float:
    """G of an order cut into consecutive batches of ``sizes`` (a 0 ends the list)."""
    wait, met, latency, position = 0.0, 0.0, 0.0, 0
    now = engine[k.NOW]
    for batch in range(len(sizes)):
        size = sizes[batch]
        longest = 0.0
        for place in range(position, position + size):
            row = order[place]
            job = jobs[row]
            prompt, answer = job[k.CONTEXT], tokens[row]
            prefill = engine[k.BASE] + engine[k.PREFILL_STEP]
            prefill += engine[k.PREFILL_TOKEN] * size * job[k.PREFILL]
            step = engine[k.BASE] + engine[k.DECODE_SEQ] * size
            step += engine[k.CONTEXT_TOKEN] * size * (prompt + answer / 2.0)
            execution = prefill + step * answer
            ok = now + wait + prefill <= job[k.TTFT_BY] and step <= job[k.TPOT]
            if ok and now + wait + execution <= job[k.E2E_BY]:
                met += 1.0
            latency += wait + execution
            longest = max(longest, execution)
        wait += longest
        position += size
    return met / max(latency, 1e-9)


@njit
def _propose(order: IntArray, sizes: IntArray, b_max: int, u: FloatArray) -> None:
    """One of the three moves, in place. ``sizes`` has room for a batch a request."""
    n = len(order)
    i = int(u[1] * n)
    if u[0] < 1.0 / 3.0:
        j = int(u[2] * n)
        order[i], order[j] = order[j], order[i]
        return
    batch, start = 0, 0
    while start + sizes[batch] <= i:
        start += sizes[batch]
        batch += 1
    if u[0] < 2.0 / 3.0:  # squeezeLastIter
        if batch > 0 and sizes[batch - 1] < b_max:
            order[i], order[start] = order[start], order[i]
            sizes[batch - 1] += 1
            sizes[batch] -= 1
    else:  # delayNextIter
        last = start + sizes[batch] - 1
        follower = batch + 1
        if follower < len(sizes) and sizes[follower] < b_max:
            order[i], order[last] = order[last], order[i]
            sizes[batch] -= 1
            sizes[follower] += 1
        elif follower < len(sizes) and sizes[len(sizes) - 1] == 0:  # full: open a batch
            order[i], order[last] = order[last], order[i]
            sizes[batch] -= 1
            for b in range(len(sizes) - 1, follower, -1):
                sizes[b] = sizes[b - 1]
            sizes[follower] = 1
    if sizes[batch] == 0:  # close the gap
        for b in range(batch, len(sizes) - 1):
            sizes[b] = sizes[b + 1]
        sizes[len(sizes) - 1] = 0


@njit
def _walk(
    engine: FloatArray,
    jobs: FloatArray,
    tokens: FloatArray,
    order: IntArray,
    sizes: IntArray,
    best: IntArray,
    best_sizes: IntArray,
    g: FloatArray,
    b_max: int,
    temperature: float,
    log_g: bool,
    uniforms: FloatArray,
) -> None:
    """One temperature: ``len(uniforms)`` steps in place; ``g`` is (current, best)."""
    trial, trial_sizes = order.copy(), sizes.copy()
    for step in range(len(uniforms)):
        _propose(trial, trial_sizes, b_max, uniforms[step])
        value = batches_g(engine, jobs, tokens, trial, trial_sizes)
        gain = value - g[0]
        if log_g:
            gain = math.log(max(value, 1e-12)) - math.log(max(g[0], 1e-12))
        if gain > 0.0 or uniforms[step, 3] < math.exp(gain / temperature):
            order[:], sizes[:], g[0] = trial, trial_sizes, value
            if value > g[1]:
                best[:], best_sizes[:], g[1] = order, sizes, value
        else:
            trial[:], trial_sizes[:] = order, sizes


def _cut(n: int, b_max: int) -> IntArray:
    sizes = np.zeros(n, dtype=np.int64)
    full = n // b_max
    sizes[:full] = b_max
    if n % b_max:
        sizes[full] = n % b_max
    return sizes


def search(
    problem: Problem,
    jobs: Jobs,
    settings: PaperSettings,
    rng: np.random.Generator,
    budget_s: float | None,
    clock: Callable[[], float] = time.thread_time,
) -> tuple[IntArray, float, float, int]:
    """(order, G, best start's G, evaluations); ``budget_s`` None runs the whole schedule."""
    began = clock()
    n = len(jobs)
    b_max = max(1, min(n, problem.capacity.max_num_seqs))
    tokens = jobs.mean_tokens
    context = jobs.waiting[:, k.CONTEXT]
    shortest = np.argsort(tokens + context * 1e-6, kind="stable").astype(np.int64)
    arrival = np.argsort(problem.waiting.arrival_s, kind="stable").astype(np.int64)
    sizes = _cut(n, b_max)

    def value(order: IntArray) -> float:
        return float(batches_g(jobs.engine, jobs.waiting, tokens, order, sizes))

    start = max((shortest, arrival), key=value)
    g = np.full(2, value(start))
    start_g = float(g[0])
    order, best, best_sizes = start.copy(), start.copy(), sizes.copy()
    temperature, evaluations = settings.t_first, 2
    while temperature >= settings.t_last:
        if budget_s is not None and clock() - began >= budget_s:
            break
        steps = settings.steps_per_temperature
        if budget_s is not None:  # a long queue must not overrun in one temperature
            steps = max(1, min(steps, 20_000 // n))
        _walk(
            jobs.engine,
            jobs.waiting,
            tokens,
            order,
            sizes,
            best,
            best_sizes,
            g,
            b_max,
            temperature,
            settings.log_g,
            rng.random((steps, 4)),
        )
        evaluations += steps
        temperature *= settings.decay
    return best, float(g[1]), start_g, evaluations


class PaperPolicy:
    """The published annealing."""

    name = "sa-paper"

    def __init__(
        self, budget_s: float | None = 0.001, seed: int = 0, settings: PaperSettings | None = None
    ) -> None:
        self.budget_s = budget_s
        self.nominal_s = budget_s if budget_s is not None else 0.05
        self.settings = settings or PaperSettings()
        self.rng = np.random.default_rng(seed)

    def __call__(self, problem: Problem) -> Plan:
        """The order to admit in."""
        began_s, own_began_s = time.perf_counter(), time.thread_time()
        n = len(problem.waiting)
        if n < 2:
            return Plan(np.arange(n, dtype=np.int64))
        jobs = prepare(problem)
        own_s = time.thread_time() - own_began_s
        left = None if self.budget_s is None else max(0.0, self.budget_s - own_s)
        order, g, start_g, evaluations = search(problem, jobs, self.settings, self.rng, left)
        order, _ = bounded(problem, jobs, order)
        return Plan(order, -g, -start_g, evaluations, time.perf_counter() - began_s)

    def warm_up(self) -> None:
        """Compile the search."""
        self(warm_up_problem())
