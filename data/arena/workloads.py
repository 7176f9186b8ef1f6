"""The arena: the workloads that every scheduling claim is measured on.

Prompts come from the test side of the split only, so that a predictor trained on the same table
has not seen them. Classes come in exact shares, in random order; rows are drawn without
replacement until a class is used up, then over again. `agents` are sessions on shared system
prompts, `documents` come with a long text before the question; of both only the request's own
words are in `prompt`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from lengthwise.data.arena.arrivals import gamma_arrivals, poisson_arrivals, trace_arrivals
from lengthwise.data.arena.sessions import Sessions, SystemPrompt
from lengthwise.data.arrays import FloatArray
from lengthwise.data.errors import InputError
from lengthwise.data.locations import pack_path
from lengthwise.data.slo import Slo
from lengthwise.data.splits import SPLITS, split_of
from lengthwise.data.table import PromptTable, take_rows
from lengthwise.data.workload import WorkloadRequest

ARRIVALS = ("poisson", "azure", "gamma")
_GAMMA_CV = 3.0


@dataclass(frozen=True, slots=True)
class ArenaClass:
    """One class of a workload: its share of the requests and its objectives."""

    share: float
    slo: Slo


@dataclass(frozen=True, slots=True)
class GpuScale:
    """How the workload is asked of an engine of a GPU's order.

    Prompts `prompts` times longer; TPOT objectives `full_steps` times a token's time in a full
    batch; TTFT and e2e objectives `patience` times what the engine's base step makes of them.
    """

    prompts: float = 3.0
    full_steps: float = 1.8
    patience: float = 1.0


@dataclass(frozen=True, slots=True)
class ArenaWorkload:
    """A named mix of classes and the source whose rows fit it best.

    `document_tokens`: least and most tokens (log-uniform) of a text that stands before each
    prompt. `sessions`: the requests are turns of sessions.
    """

    name: str
    source: str
    classes: tuple[ArenaClass, ...]
    gpu: GpuScale = GpuScale()
    document_tokens: tuple[int, int] | None = None
    sessions: Sessions | None = None

    @property
    def default_source(self) -> str:
        """The workload's pack when present, the synthetic corpus otherwise."""
        return self.source if pack_path(self.source) else "synthetic"


_MIXED = (
    ArenaClass(0.45, Slo(ttft_s=3.0, tpot_s=0.05, slo_class="chat")),
    ArenaClass(0.30, Slo(e2e_s=20.0, slo_class="code")),
    ArenaClass(0.15, Slo(e2e_s=4.0, slo_class="agent_step")),
    ArenaClass(0.10, Slo(e2e_s=90.0, slo_class="reasoning")),
)
_SYSTEM_PROMPTS = tuple(
    SystemPrompt(f"system-{i}", tokens, 1.0 / i)
    for i, tokens in enumerate((1500, 2200, 1800, 3000, 2600, 4000), start=1)
)

ARENA = {
    workload.name: workload
    for workload in (
        ArenaWorkload(
            "paper",
            "gpt35",
            (
                ArenaClass(0.5, Slo(e2e_s=30.0, slo_class="code")),
                ArenaClass(0.5, Slo(ttft_s=10.0, tpot_s=0.05, slo_class="chat")),
            ),
            GpuScale(full_steps=1.5),
        ),
        ArenaWorkload("mixed", "gpt35", _MIXED),
        ArenaWorkload(
            "tails",
            "llama31_8b",
            (
                ArenaClass(0.7, Slo(e2e_s=60.0, slo_class="reasoning")),
                ArenaClass(0.3, Slo(ttft_s=5.0, slo_class="chat")),
            ),
        ),
        ArenaWorkload(
            "agents",
            "gpt35",
            (
                ArenaClass(0.65, Slo(e2e_s=4.0, slo_class="agent_step")),
                ArenaClass(0.35, Slo(ttft_s=2.5, tpot_s=0.05, slo_class="chat")),
            ),
            GpuScale(prompts=1.0),
            sessions=Sessions(_SYSTEM_PROMPTS, live=256, mean_turns=8.0, most_history_tokens=2000),
        ),
        ArenaWorkload(
            "documents",
            "gpt35",
            (
                ArenaClass(0.50, Slo(e2e_s=10.0, slo_class="agent_step")),
                ArenaClass(0.25, Slo(ttft_s=5.0, tpot_s=0.05, slo_class="chat")),
                ArenaClass(0.25, Slo(e2e_s=30.0, slo_class="reasoning")),
            ),
            GpuScale(prompts=1.0),
            document_tokens=(2000, 16_000),
        ),
        # 0.02 s: 1.3 steps of a full batch of the tiny engine
        ArenaWorkload(
            "tight",
            "gpt35",
            (ArenaClass(0.45, Slo(ttft_s=3.0, tpot_s=0.02, slo_class="chat")), *_MIXED[1:]),
            GpuScale(full_steps=1.3),
        ),
        ArenaWorkload("mixed-long", "gpt35", _MIXED, GpuScale(prompts=10.0, patience=1.5)),
    )
}


def arena_workload(name: str) -> ArenaWorkload:
    """A workload of the arena by name; InputError lists the names."""
    if name not in ARENA:
        raise InputError(f"no arena workload {name!r}; known: {', '.join(ARENA)}")
    return ARENA[name]


def build_workload(
    name: str,
    table: PromptTable,
    n: int,
    rate_rps: float,
    seed: int,
    arrivals: str = "poisson",
    split: str | None = "test",
) -> list[WorkloadRequest]:
    """`n` requests of an arena workload at `rate_rps`, sorted by arrival.

    `arrivals`: "poisson", "azure" (bursts of the Azure 2023 traces, rescaled) or "gamma"
    (gaps with coefficient of variation 3, no file needed). `split`: the side of the table that
    prompts come from, None for all. Raises InputError when the table lacks a class.
    """
    return draw_requests(arena_workload(name), table, n, rate_rps, seed, arrivals, split)


def draw_requests(
    workload: ArenaWorkload,
    table: PromptTable,
    n: int,
    rate_rps: float,
    seed: int,
    arrivals: str = "poisson",
    split: str | None = "test",
) -> list[WorkloadRequest]:
    """As `build_workload`, of a workload that need not be one of the arena's."""
    rows = _rows_by_class(workload, table, split)
    rng = np.random.default_rng(seed)
    times = _arrival_times(arrivals, n, rate_rps, rng)
    counts = _quotas([c.share for c in workload.classes], n)
    drawn: list[tuple[Slo, pd.Series]] = []
    for arena_class, count in zip(workload.classes, counts, strict=True):
        candidates = rows[arena_class.slo.slo_class]
        picks = _without_replacement(len(candidates), count, rng)
        drawn += [(arena_class.slo, row) for row in candidates.iloc[picks].itertuples(index=False)]
    requests = [
        WorkloadRequest(
            arrival_s=float(time),
            prompt_tokens=row.prompt_tokens,
            output_tokens=row.output_tokens,
            slo=slo,
            prompt=row.prompt,
            task=row.task,
        )
        for time, (slo, row) in zip(times, (drawn[i] for i in rng.permutation(n)), strict=True)
    ]
    if workload.document_tokens is not None:
        return _with_documents(requests, workload.document_tokens, rng)
    if workload.sessions is not None:
        return _in_sessions(requests, workload.sessions, rng)
    return requests


def _with_documents(
    requests: list[WorkloadRequest], document_tokens: tuple[int, int], rng: np.random.Generator
) -> list[WorkloadRequest]:
    """A document before every prompt; the whole lies in the range, up to its own words."""
    low, high = np.log(document_tokens)
    lengths = np.exp(rng.uniform(low, high, len(requests))).astype(int)
    return [
        replace(r, prompt_tokens=max(int(tokens), r.prompt_tokens), text_tokens=r.prompt_tokens)
        for r, tokens in zip(requests, lengths, strict=True)
    ]


def _in_sessions(
    requests: list[WorkloadRequest], sessions: Sessions, rng: np.random.Generator
) -> list[WorkloadRequest]:
    """Every request as the next turn of some session."""
    turns = sessions.turns(
        [r.prompt_tokens for r in requests], [r.output_tokens for r in requests], rng
    )
    return [
        replace(
            request,
            prompt_tokens=turn.prompt_tokens,
            text_tokens=request.prompt_tokens,
            prefix=turn.system_prompt.prefix,
            prefix_tokens=turn.system_prompt.prefix_tokens,
            session=turn.session,
        )
        for request, turn in zip(requests, turns, strict=True)
    ]


def _rows_by_class(
    workload: ArenaWorkload, table: PromptTable, split: str | None
) -> dict[str, PromptTable]:
    if split is not None and split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)} or None, got {split!r}")
    side = table if split is None else take_rows(table, split_of(list(table["group"])) == split)
    rows = {}
    for arena_class in workload.classes:
        wanted = arena_class.slo.slo_class
        rows[wanted] = side[side["slo_class"] == wanted]
        if rows[wanted].empty:
            label = table.attrs.get("source_label", "the table")
            have = ", ".join(sorted(side["slo_class"].unique())) or "none"
            raise InputError(
                f"workload {workload.name!r} needs class {wanted!r}, but {label}"
                f"{f' ({split} split)' if split else ''} has only: {have}"
            )
    return rows


def _arrival_times(kind: str, n: int, rate_rps: float, rng: np.random.Generator) -> FloatArray:
    if kind == "poisson":
        return poisson_arrivals(n, rate_rps, rng)
    if kind == "gamma":
        return gamma_arrivals(n, rate_rps, rng, cv=_GAMMA_CV)
    if kind == "azure":
        from lengthwise.data.arena.traces import azure_times

        return trace_arrivals(n, rate_rps, azure_times(), rng)
    raise InputError(f"arrivals must be one of {', '.join(ARRIVALS)}, got {kind!r}")


def _quotas(shares: list[float], n: int) -> list[int]:
    """Whole counts that sum to n: floors, then one more to the largest remainders."""
    exact = np.array(shares) * n
    counts = np.floor(exact).astype(int)
    for index in np.argsort(counts - exact, kind="stable")[: n - counts.sum()]:
        counts[index] += 1
    return [int(count) for count in counts]


def _without_replacement(rows: int, count: int, rng: np.random.Generator) -> list[int]:
    rounds = -(-count // rows)
    return [int(i) for _ in range(rounds) for i in rng.permutation(rows)][:count]
