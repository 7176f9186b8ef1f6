"""Where the requests of a comparison come from, and what a scheduler may know of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lengthwise.data.arena.workloads import (
    ARENA,
    ARRIVALS,
    ArenaWorkload,
    arena_workload,
    draw_requests,
)
from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.data.sources.load import load_table
from lengthwise.data.table import PromptTable
from lengthwise.data.workload import WorkloadRequest, read_workload
from lengthwise.scheduler.problem import NO_PREFIX
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.capacity import requests_needed, saturated_rps
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.training.bench.comparison.scaling import scale_to_engine

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor


SAMPLE_SEED = 90_001


@dataclass(frozen=True, slots=True)
class WorkloadSource:
    """A named workload of the arena over a table of prompts, or the requests of a file.

    `split` is the side of the table that prompts come from; None for all of it. `profile` is the
    engine that a workload of the arena is scaled to; None to take it as it stands. `workload` is
    what is drawn from the table where it is not the arena's of that name.
    """

    name: str
    source_label: str
    table: PromptTable | None = None
    requests: tuple[WorkloadRequest, ...] = ()
    arrivals: str = "poisson"
    split: str | None = "test"
    profile: EngineProfile | None = None
    workload: ArenaWorkload | None = None

    def draw(self, n: int, rate_rps: float, seed: int) -> list[WorkloadRequest]:
        """`n` requests at `rate_rps`; a file's requests keep their pattern, rescaled."""
        if self.table is not None:
            workload = self.workload or arena_workload(self.name)
            drawn = draw_requests(
                workload, self.table, n, rate_rps, seed, self.arrivals, self.split
            )
            if self.profile is None:
                return drawn
            return scale_to_engine(drawn, workload.gpu, self.profile)
        chosen = self.requests[:n]
        factor = file_rate_rps(chosen) / rate_rps
        first_s = chosen[0].arrival_s
        return [replace(r, arrival_s=(r.arrival_s - first_s) * factor) for r in chosen]

    def sample(self, n: int) -> list[WorkloadRequest]:
        """`n` requests that stand for the workload; a file's at once, a short one's over again."""
        if self.table is not None:
            return self.draw(n, 1.0, SAMPLE_SEED)
        rows = self.requests
        return [replace(rows[i % len(rows)], arrival_s=0.0) for i in range(n)]


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
    """Requests/s of this workload that are load 1 on the engine; see `simulator.capacity`.

    Raises:
        InputError: a request that does not fit in the engine's memory.
    """
    requests = source.sample(requests_needed(profile))
    check_fit(requests, profile)
    return saturated_rps(to_sim(requests), profile)


def check_fit(requests: Sequence[WorkloadRequest], profile: EngineProfile) -> None:
    """InputError if one request alone is more than the engine's KV memory holds."""
    longest = max(r.prompt_tokens + r.output_tokens for r in requests)
    if longest > profile.capacity.kv_tokens:
        raise InputError(
            f"a request of {longest} tokens does not fit: engine profile {profile.name!r} has "
            f"{profile.capacity.kv_tokens} tokens of KV memory"
        )


def to_sim(
    requests: Sequence[WorkloadRequest],
    quantiles: np.ndarray | None = None,
    levels: np.ndarray | None = None,
    weights: SloTable | None = None,
) -> SimWorkload:
    """Arrays for the simulator; `quantiles` (n, q) at `levels` (q,), None where none will look.

    `weights`: the SLO table that says what each class is worth; 1 each without.
    """
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
        weight=np.array([(weights or SloTable({})).weight(r.slo.slo_class) for r in requests]),
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
        tokens = [r.readable_tokens for r in requests]
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


def cut_at_max_tokens(quantiles: np.ndarray, requests: Sequence[WorkloadRequest]) -> np.ndarray:
    """The quantiles (n, q), none above its request's `max_tokens`: what the server does too."""
    if all(r.max_tokens is None for r in requests):
        return quantiles
    most = np.array([np.inf if r.max_tokens is None else r.max_tokens for r in requests])
    return np.minimum(quantiles, most[:, None])


def gaussian_rows(true: np.ndarray, groups: Sequence[str | None], levels: np.ndarray) -> np.ndarray:
    """Quantiles (n, q) of one Gaussian per group, fitted to `true` (n,), at least one token."""
    from scipy.stats import norm

    rows = np.empty((len(true), len(levels)))
    for group in set(groups):
        member = np.array([g == group for g in groups])
        own = true[member]
        rows[member] = norm.ppf(levels, loc=own.mean(), scale=max(own.std(), 1e-6))
    return np.maximum(rows, 1.0)
