"""Where the requests of a comparison come from, and what rate means "load 1"."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lengthwise.data.arena.workloads import ARENA, ARRIVALS, arena_workload, build_workload
from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import load_table
from lengthwise.data.table import PromptTable
from lengthwise.data.workload import WorkloadRequest, read_workload
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.workload import SimWorkload
from lengthwise.training.bench.scaling import scale_to_engine

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor


CAPACITY_SAMPLE = 600
SAMPLE_PER_SLOT = 12  # fewer, and a wide engine is still filling up or already running dry
CAPACITY_SEED = 90_001


@dataclass(frozen=True, slots=True)
class WorkloadSource:
    """A named workload of the arena over a table of prompts, or the requests of a file.

    `split` is the side of the table that prompts come from; None for all of it. `profile` is the
    engine that a workload of the arena is scaled to; None to take it as it stands.
    """

    name: str
    source_label: str
    table: PromptTable | None = None
    requests: tuple[WorkloadRequest, ...] = ()
    arrivals: str = "poisson"
    split: str | None = "test"
    profile: EngineProfile | None = None

    def draw(self, n: int, rate_rps: float, seed: int) -> list[WorkloadRequest]:
        """`n` requests at `rate_rps`; a file's requests keep their pattern, rescaled."""
        if self.table is not None:
            drawn = build_workload(
                self.name, self.table, n, rate_rps, seed, self.arrivals, self.split
            )
            if self.profile is None:
                return drawn
            return scale_to_engine(drawn, arena_workload(self.name).gpu, self.profile)
        chosen = self.requests[:n]
        factor = file_rate_rps(chosen) / rate_rps
        first_s = chosen[0].arrival_s
        return [replace(r, arrival_s=(r.arrival_s - first_s) * factor) for r in chosen]

    def sample(self, n: int = CAPACITY_SAMPLE) -> list[WorkloadRequest]:
        """Requests that stand for the workload when its capacity is computed."""
        if self.table is not None:
            return self.draw(n, 1.0, CAPACITY_SEED)
        return list(self.requests[:n])


def is_arena(spec: str) -> bool:
    """Whether `spec` names a workload of the arena (else it is a file)."""
    return spec in ARENA


def open_workload(
    spec: str,
    *,
    source: str | None = None,
    arrivals: str = "poisson",
    profile: EngineProfile | None = None,
) -> WorkloadSource:
    """A workload by arena name or file.

    Args:
        spec: a name of the arena, or the path of a workload file.
        source: data source for an arena workload; by default its pack, else the synthetic corpus.
        arrivals: arrival process of an arena workload.
        profile: engine that an arena workload is scaled to, where its profile asks for it.

    Raises:
        InputError: neither a known name nor a file, a malformed file, an unknown source.
    """
    if arrivals not in ARRIVALS:
        raise InputError(f"unknown arrivals {arrivals!r}: must be one of {', '.join(ARRIVALS)}")
    if is_arena(spec):
        table = load_table(source or arena_workload(spec).default_source)
        label = str(table.attrs["source_label"])
        return WorkloadSource(spec, label, table, arrivals=arrivals, profile=profile)
    path = Path(spec)
    if not path.is_file():
        raise InputError(
            f"unknown workload {spec!r}: must be one of {', '.join(ARENA)} or a workload file"
        )
    return WorkloadSource(path.name, f"file:{path.name}", requests=tuple(read_workload(path)))


def file_rate_rps(requests: Sequence[WorkloadRequest]) -> float:
    """Mean arrival rate of a list of requests; all at once counts as one per millisecond."""
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    return max(len(requests) - 1, 1) / max(span_s, 1e-3)


def capacity_rps(source: WorkloadSource, profile: EngineProfile) -> float:
    """Requests/s the engine can finish of this workload, by its calibrated profile."""
    n = max(CAPACITY_SAMPLE, SAMPLE_PER_SLOT * profile.capacity.max_num_seqs)
    return modeled_rps(source.sample(n), profile)


def modeled_rps(requests: Sequence[WorkloadRequest], profile: EngineProfile) -> float:
    """Requests/s finished while more wait than fit, by the model; measured the same way."""
    at_once = [replace(r, arrival_s=0.0) for r in requests]
    played = simulate(to_sim(at_once), make_policy("fcfs"), profile)
    tokens_per_s = saturated_tokens_per_s(
        played.first_token_s, played.finish_s, played.output_tokens
    )
    return tokens_per_s / float(np.mean(played.output_tokens))


def saturated_tokens_per_s(
    first_s: np.ndarray, last_s: np.ndarray, output_tokens: np.ndarray
) -> float:
    """Output tokens/s while there was a queue and the engine was in its stride.

    From the time a quarter of the requests have their first token, when a server is no longer
    busy taking them in, to the last first token.

    Args:
        first_s: (n,) time of each first token.
        last_s: (n,) time of each last token.
        output_tokens: (n,) tokens, taken as evenly spread between the two.

    Raises:
        ValueError: all started at once, so that there never was a queue.
    """
    start, end = np.quantile(first_s, 0.25), first_s.max()
    if not end > start:
        raise ValueError("saturated run too short: every request started at once")
    span = np.maximum(last_s - first_s, 1e-9)
    inside = np.clip(np.minimum(last_s, end) - np.maximum(first_s, start), 0.0, None) / span
    tokens = (first_s >= start) + (output_tokens - 1) * inside
    return float(tokens.sum() / (end - start))


def to_sim(
    requests: Sequence[WorkloadRequest],
    quantiles: np.ndarray | None = None,
    levels: np.ndarray | None = None,
) -> SimWorkload:
    """Arrays for the simulator; `quantiles` (n, q) at `levels` (q,), None where none will look."""
    if quantiles is None or levels is None:
        quantiles, levels = np.ones((len(requests), 1)), np.array([0.5])

    def limits(name: str) -> np.ndarray:
        values = [getattr(r.slo, name) for r in requests]
        return np.array([math.inf if v is None else v for v in values])

    classes = sorted({r.slo.slo_class for r in requests})
    prefixes = {name: i for i, name in enumerate(sorted({r.prefix for r in requests if r.prefix}))}
    shared = {}
    if prefixes:
        shared["prefix_id"] = np.array(
            [NO_PREFIX if r.prefix is None else prefixes[r.prefix] for r in requests]
        )
        shared["prefix_tokens"] = np.array([r.prefix_tokens or 0 for r in requests])
    return SimWorkload(
        arrival_s=np.array([r.arrival_s for r in requests]),
        prompt_tokens=np.array([r.prompt_tokens for r in requests], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for r in requests], dtype=np.int64),
        ttft_s=limits("ttft_s"),
        tpot_s=limits("tpot_s"),
        e2e_s=limits("e2e_s"),
        weight=np.ones(len(requests)),
        class_id=np.array([classes.index(r.slo.slo_class) for r in requests], dtype=np.int64),
        quantiles=np.asarray(quantiles, dtype=float),
        levels=np.asarray(levels, dtype=float),
        **shared,
    )


def length_rows(
    requests: Sequence[WorkloadRequest], lengths: str, predictor: LengthPredictor | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a scheduler may know of the lengths: quantiles (n, q) tokens and levels (q,).

    `oracle`: the true length at every level. `learned`: the predictor's distribution. `class`: one
    Gaussian per class, the paper's profile; the predictor's card has it, without a predictor it is
    taken from the workload itself. `none`: the same distribution for every request.

    Raises:
        InputError: `learned` without a predictor.
    """
    from lengthwise.predictor.distribution import DEFAULT_LEVELS

    levels = np.asarray(DEFAULT_LEVELS if predictor is None else predictor.levels, dtype=float)
    true = np.array([r.output_tokens for r in requests], dtype=float)
    classes = [r.slo.slo_class for r in requests]
    if lengths == "oracle":
        return np.repeat(true[:, None], len(levels), axis=1), levels
    if lengths == "learned":
        if predictor is None:
            raise InputError("lengths 'learned' need a predictor: give its URI or directory")
        tokens = [r.text_tokens or r.prompt_tokens for r in requests]
        lengths_known = predictor.predict([r.prompt for r in requests], classes, tokens)
        return lengths_known.quantiles, levels
    if lengths == "none":
        pooled = [None] * len(requests)
        if predictor is not None:
            return np.repeat(predictor.class_prior(None)[None, :], len(requests), axis=0), levels
        return gaussian_rows(true, pooled, levels), levels
    if predictor is not None:
        return np.stack([predictor.class_gaussian(name) for name in classes]), levels
    return gaussian_rows(true, classes, levels), levels


def gaussian_rows(true: np.ndarray, groups: Sequence[str | None], levels: np.ndarray) -> np.ndarray:
    """Quantiles (n, q) of one Gaussian per group, fitted to `true` (n,), at least one token."""
    from scipy.stats import norm

    rows = np.empty((len(true), len(levels)))
    for group in set(groups):
        member = np.array([g == group for g in groups])
        own = true[member]
        rows[member] = norm.ppf(levels, loc=own.mean(), scale=max(own.std(), 1e-6))
    return np.maximum(rows, 1.0)
