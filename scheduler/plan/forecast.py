"""The arrivals to come: recent requests stand for the next ones, at their expected times."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.data.arrays import FloatArray
from lengthwise.scheduler.problem import NO_PREFIX, Problem, RequestArrays

RING = 256
STRIDE = 97  # spreads a few stand-ins over the whole ring
DEFAULT_OBJECTIVE_S = 10.0  # where nobody has one
PERSISTENCE_S = 5.0  # how long a rate above the usual one is trusted to last


class ArrivalForecast:
    """A ring of recent requests and their rate.

    Each request is taken once, when it is first seen waiting. A clock that steps back only means
    that newcomers are recognised late.
    """

    def __init__(self, size: int = RING) -> None:
        self.size = size
        self._ring: RequestArrays | None = None
        self._count = 0
        self._seen_until_s = -np.inf
        self._first_s = np.inf
        self._cached: dict[int, float] = {}  # tokens of each shared beginning, when last seen

    def observe(self, problem: Problem) -> None:
        """Take in the requests that arrived since the last call."""
        self._look(problem)
        arrival_s = problem.waiting.arrival_s
        self._seen_until_s = min(self._seen_until_s, problem.now_s)
        new = np.flatnonzero(arrival_s > self._seen_until_s)
        if not len(new):
            return
        new = new[np.argsort(arrival_s[new], kind="stable")]
        fresh = problem.waiting.take(new)
        self._first_s = min(self._first_s, float(fresh.arrival_s[0]))
        self._seen_until_s = float(fresh.arrival_s[-1])
        self._count += len(new)
        if self._ring is None or self._ring.quantiles.shape[1] != fresh.quantiles.shape[1]:
            self._ring = fresh
        else:
            self._ring = self._ring.concatenated(fresh)
        if len(self._ring) > self.size:
            self._ring = self._ring.take(np.arange(len(self._ring) - self.size, len(self._ring)))

    def _look(self, problem: Problem) -> None:
        """What the engine has cached now of the beginnings that requests share."""
        everybody = (problem.running, problem.waiting)
        prefixes = np.concatenate([rows.prefix_id for rows in everybody])
        if (prefixes == NO_PREFIX).all():
            return
        shares, where = np.unique(prefixes, return_inverse=True)
        there = np.zeros(len(shares))
        tokens = [np.minimum(rows.cached_tokens, rows.prefix_tokens) for rows in everybody]
        np.maximum.at(there, where, np.concatenate(tokens))
        now = dict(zip(shares.tolist(), there.tolist(), strict=True))
        self._cached |= now
        if len(self._cached) > 4 * self.size:
            keep = set(now) if self._ring is None else set(now) | set(self._ring.prefix_id.tolist())
            self._cached = {prefix: self._cached[prefix] for prefix in self._cached.keys() & keep}

    def _found(self, rows: RequestArrays) -> FloatArray:
        """Tokens that each of ``rows`` would find cached if it came now, not when it came."""
        if not self._cached:  # nobody ever shared a beginning
            return np.asarray(np.minimum(rows.cached_tokens, rows.prompt_tokens - 1.0))
        there = np.array([self._cached.get(p, 0.0) for p in rows.prefix_id.tolist()])
        of_prefix = np.minimum(there, rows.prefix_tokens)
        of_its_own = np.maximum(rows.cached_tokens - rows.prefix_tokens, 0.0)
        found = of_prefix + of_its_own * (of_prefix >= rows.prefix_tokens)
        found = np.where(rows.prefix_id == NO_PREFIX, rows.cached_tokens, found)
        return np.asarray(np.minimum(found, rows.prompt_tokens - 1.0))

    def mean_objective_s(self, problem: Problem) -> float:
        """Mean of the first objective (TTFT or e2e) of recent requests that have one."""
        rows = problem.waiting if self._ring is None else self._ring
        first_s = np.minimum(rows.ttft_s, rows.e2e_s)
        first_s = first_s[np.isfinite(first_s)]
        return float(first_s.mean()) if len(first_s) else DEFAULT_OBJECTIVE_S

    def usual_rps(self, problem: Problem) -> float:
        """The mean rate of all that was seen."""
        seen_s = problem.now_s - self._first_s
        return self._count / seen_s if seen_s > 1.0 else problem.arrival_rate_rps

    def expected(self, problem: Problem, horizon_s: float, most: int) -> RequestArrays:
        """At most ``most`` stand-ins within ``horizon_s``, sorted by arrival, prompts uncomputed.

        The rate falls from ``problem.arrival_rate_rps`` to the mean of all that was seen, by 1/e
        in PERSISTENCE_S. Empty when nothing is known.
        """
        now_s, rate = problem.now_s, problem.arrival_rate_rps
        if self._ring is None or rate <= 0 or horizon_s <= 0 or most < 1:
            return RequestArrays.empty(problem.waiting.quantiles.shape[1])
        at_s = arrival_times(min(rate, self.usual_rps(problem)), rate, horizon_s, most)
        rows = self._ring.take((np.arange(len(at_s)) * STRIDE + self._count) % len(self._ring))
        found = self._found(rows)
        return replace(
            rows,
            cached_tokens=found,
            arrival_s=now_s + at_s,
            queued_s=now_s + at_s,
            prefill_left_tokens=rows.prompt_tokens - found,
            generated_tokens=np.zeros(len(rows)),
            first_token_s=np.full(len(rows), np.nan),
        )


def arrival_times(usual: float, rate: float, horizon_s: float, most: int) -> FloatArray:
    """When the expected count ∫usual + (rate - usual)·exp(-t / PERSISTENCE_S) passes n + 1/2."""
    grid = np.linspace(0.0, horizon_s, 256)
    mass = usual * grid + (rate - usual) * PERSISTENCE_S * (1.0 - np.exp(-grid / PERSISTENCE_S))
    count = min(most, int(mass[-1] + 0.5))
    return np.interp(np.arange(count) + 0.5, mass, grid)
