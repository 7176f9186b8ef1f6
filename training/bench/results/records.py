"""Per-request records, and what a set of them amounts to.

`bench` and `simulate` both end in a list of `RequestRecord`s per arm, so measured and modelled
results are laid side by side under the same definitions, which are those of `vllm bench serve`:
latency counts from the moment the client sends, TPOT = (e2e - TTFT) / (n - 1), and a request that
fails has not attained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from lengthwise.data.slo import Slo

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """What happened to one request; times in s.

    `arrival_s` and `send_s` count from the run's start, `ttft_s` and `e2e_s` from the send; the
    latter two are None where nothing came back. `target_tokens` is the true length: the replayed
    one, or where nothing was forced what the model made of it. `cut` says it ended at `max_tokens`.
    """

    index: int
    repeat: int
    slo: Slo
    arrival_s: float
    send_s: float
    prompt_tokens: int
    target_tokens: int
    output_tokens: int = 0
    ttft_s: float | None = None
    e2e_s: float | None = None
    error: str | None = None
    predicted_tokens: float | None = None
    cut: bool = False

    @property
    def ok(self) -> bool:
        """Whether the whole answer came back."""
        return self.error is None and self.ttft_s is not None and self.e2e_s is not None

    @property
    def slo_class(self) -> str:
        """Name of the service class."""
        return self.slo.slo_class

    @property
    def tpot_s(self) -> float | None:
        """Mean time per output token after the first, s; 0 for answers of one token."""
        if self.ttft_s is None or self.e2e_s is None:
            return None
        if self.output_tokens <= 1:
            return 0.0
        return (self.e2e_s - self.ttft_s) / (self.output_tokens - 1)

    @property
    def met(self) -> bool:
        """Whether every given objective holds; False for a lost request."""
        if not self.ok:
            return False
        return bool(self.slo.met(self.ttft_s, self.tpot_s, self.e2e_s))

    @property
    def send_lag_s(self) -> float:
        """How late the client sent, s."""
        return self.send_s - self.arrival_s

    def to_row(self) -> dict[str, Any]:
        """Flat row for the records file, SLO in ms as on the wire."""
        row = asdict(self)
        slo = row.pop("slo")
        row["slo_class"] = slo["slo_class"]
        for name in ("ttft", "tpot", "e2e"):
            limit_s = slo[f"{name}_s"]
            row[f"slo_{name}_ms"] = None if limit_s is None else limit_s * 1e3
        return row | {"tpot_s": self.tpot_s, "met": self.met}


def attainment_interval(
    hits_by_repeat: Sequence[np.ndarray], *, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[float, float] | None:
    """95 % interval of a mean of per-request values by block bootstrap.

    Neighbours in time share a queue, so their outcomes are not independent: each repeat, in order
    of arrival, is cut into contiguous blocks of about sqrt(n) requests, and blocks of all repeats
    are resampled together. Pass 0/1 outcomes for an attainment, differences in {-1, 0, 1} for a
    paired comparison. Outcomes that all agree tell the bootstrap nothing; then Clopper-Pearson.

    Args:
        hits_by_repeat: one (n_r,) array a repeat, in order of arrival.
        seed: of the resampling.
        resamples: number of bootstrap samples.
    """
    values = [np.asarray(h, dtype=np.float64) for h in hits_by_repeat if len(h)]
    if not values:
        return None
    pooled = np.concatenate(values)
    if np.all(pooled == pooled[0]) and pooled[0] in (0.0, 1.0):
        exact = binomtest(int(pooled.sum()), len(pooled)).proportion_ci(0.95)
        return float(exact.low), float(exact.high)
    sums, sizes = [], []
    for one in values:
        for block in np.array_split(one, max(2, round(np.sqrt(len(one))))):
            if len(block):
                sums.append(block.sum())
                sizes.append(len(block))
    draws = np.random.default_rng(seed).integers(0, len(sums), (resamples, len(sums)))
    means = np.array(sums)[draws].sum(axis=1) / np.array(sizes)[draws].sum(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _by_repeat(
    records: Sequence[RequestRecord], value: Callable[[RequestRecord], float]
) -> list[np.ndarray]:
    ordered = sorted(records, key=lambda r: (r.repeat, r.arrival_s, r.index))
    repeats = sorted({r.repeat for r in ordered})
    return [np.array([value(r) for r in ordered if r.repeat == k]) for k in repeats]


def measured_duration_s(records: Sequence[RequestRecord]) -> float:
    """Sum over the repeats of the time from first send to last answer, s."""
    total = 0.0
    for repeat in {r.repeat for r in records}:
        own = [r for r in records if r.repeat == repeat]
        ends = [r.send_s + r.e2e_s for r in own if r.ok and r.e2e_s is not None]
        if ends:
            total += max(ends) - min(r.send_s for r in own)
    return total


def loaded_tokens_per_s(records: Sequence[RequestRecord]) -> float | None:
    """Output tokens/s between each repeat's first and last send, before the queue drains.

    The tail of a run, when only a few long answers are left, depends on which answers the policy
    kept for last; this leaves it out. Tokens are taken as evenly spread between first and last.
    """
    tokens = seconds = 0.0
    for repeat in {r.repeat for r in records}:
        own = [r for r in records if r.repeat == repeat]
        start, end = min(r.send_s for r in own), max(r.send_s for r in own)
        seconds += end - start
        for r in own:
            if r.ttft_s is None or r.e2e_s is None:
                continue
            first, last = r.send_s + r.ttft_s, r.send_s + r.e2e_s
            if first > end:
                continue
            share = 1.0 if last <= end else (end - first) / (last - first)
            tokens += 1 + (r.output_tokens - 1) * share
    return tokens / seconds if seconds > 0 else None


def _latency(records: Sequence[RequestRecord]) -> dict[str, float | None]:
    done = [r for r in records if r.ok]
    e2e = np.array([r.e2e_s for r in done], dtype=float)
    ttft = np.array([r.ttft_s for r in done], dtype=float)
    tpot = np.array([r.tpot_s for r in done], dtype=float)

    def mean(x: np.ndarray) -> float | None:
        return float(x.mean()) if len(x) else None

    def p99(x: np.ndarray) -> float | None:
        return float(np.quantile(x, 0.99)) if len(x) else None

    return {
        "mean_e2e_s": mean(e2e),
        "p99_e2e_s": p99(e2e),
        "mean_ttft_s": mean(ttft),
        "p99_ttft_s": p99(ttft),
        "mean_tpot_s": mean(tpot),
    }


def _attained(records: Sequence[RequestRecord], seed: int) -> dict[str, Any]:
    interval = attainment_interval(_by_repeat(records, lambda r: float(r.met)), seed=seed)
    return {
        "requests": len(records),
        "lost": sum(not r.ok for r in records),
        "attainment": float(np.mean([r.met for r in records])) if records else None,
        "attainment_ci95": None if interval is None else list(interval),
    }


def summarize_arm(
    policy: str,
    lengths: str,
    records: Sequence[RequestRecord],
    *,
    plan_ms_p50: float | None = None,
    plan_ms_p99: float | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """One arm of the result document.

    `g_per_s` is the paper's G (arXiv 2504.14966): requests that met their SLO over the sum of all
    latencies. `goodput_rps` is met requests over the time from first send to last answer.
    `max_wait_s` is the longest wait for a first token, the only wait a client can see.
    """
    duration_s = measured_duration_s(records)
    done = [r for r in records if r.ok]
    met = sum(r.met for r in records)
    latency_sum_s = sum(r.e2e_s for r in done if r.e2e_s is not None)
    tokens = sum(r.output_tokens for r in done)
    classes = sorted({r.slo_class for r in records})
    per_class = {}
    for name in classes:
        own = [r for r in records if r.slo_class == name]
        per_class[name] = _attained(own, seed) | _latency(own)
    return {
        "policy": policy,
        "lengths": lengths,
        **_attained(records, seed),
        **_latency(records),
        "goodput_rps": met / duration_s if duration_s > 0 else 0.0,
        "g_per_s": met / latency_sum_s if latency_sum_s > 0 else 0.0,
        "output_tokens_per_s": tokens / duration_s if duration_s > 0 else 0.0,
        "max_wait_s": max((r.ttft_s for r in done if r.ttft_s is not None), default=None),
        "plan_ms_p50": plan_ms_p50,
        "plan_ms_p99": plan_ms_p99,
        "per_class": per_class,
    }


def paired_difference(
    ours: Sequence[RequestRecord],
    base: Sequence[RequestRecord],
    *,
    seed: int = 0,
    weight: Callable[[RequestRecord], float] = lambda record: 1.0,
) -> dict[str, Any]:
    """Attainment of `ours` minus that of `base`, request by request (same workload in both).

    `weight` says what meeting a request is worth.

    Raises:
        ValueError: the two sides did not see the same requests.
    """
    base_met = {(r.repeat, r.index): r.met for r in base}
    if base_met.keys() != {(r.repeat, r.index) for r in ours}:
        raise ValueError("paired difference needs the same requests on both sides")
    usual = float(np.mean([weight(r) for r in ours])) if ours else 1.0
    deltas = _by_repeat(
        ours, lambda r: (float(r.met) - float(base_met[r.repeat, r.index])) * (weight(r) / usual)
    )
    interval = attainment_interval(deltas, seed=seed)
    return {
        "attainment_difference": float(np.concatenate(deltas).mean()) if deltas else None,
        "difference_ci95": None if interval is None else list(interval),
    }
