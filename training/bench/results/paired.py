"""One arm against the others over several finished runs: `lengthwise report RUN RUN ...`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lengthwise.data.errors import InputError
from lengthwise.training.bench.results.records import RequestRecord, paired_difference
from lengthwise.training.bench.results.result import BenchResult

ALL_RUNS = "all together"


@dataclass(frozen=True, slots=True)
class RunRecords:
    """A finished run: its name, its document and the records of each arm."""

    name: str
    result: BenchResult
    records: Mapping[str, Sequence[RequestRecord]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Attainment of the arm less that of `other`, in points, with its 95 % interval."""

    run: str
    other: str
    requests: int
    points: float
    ci95: tuple[float, float]


def paired_over_runs(runs: Sequence[RunRecords], arm: str) -> list[Difference]:
    """Differences of `arm` to every other arm, in each run and over all of them.

    Raises:
        InputError: a run without that arm, or whose arms did not see the same requests.
    """
    pooled: dict[str, tuple[list[RequestRecord], list[RequestRecord]]] = defaultdict(
        lambda: ([], [])
    )
    found = []
    first_repeat = 0
    for run in runs:
        if arm not in run.records:
            raise InputError(f"{run.name} has no arm {arm!r}: it has {', '.join(run.records)}")
        for other, base in run.records.items():
            if other == arm:
                continue
            found.append(_difference(run.name, other, run.records[arm], base))
            for side, records in zip(pooled[other], (run.records[arm], base), strict=True):
                side += [_moved(record, first_repeat) for record in records]
        first_repeat += 1 + max((r.repeat for r in run.records[arm]), default=0)
    if len(runs) > 1:
        found += [_difference(ALL_RUNS, other, *sides) for other, sides in pooled.items()]
    return found


def _moved(record: RequestRecord, repeats: int) -> RequestRecord:
    """The record as of a later repeat, so that those of several runs lie side by side."""
    return replace(record, repeat=record.repeat + repeats)


def _difference(
    run: str, other: str, ours: Sequence[RequestRecord], base: Sequence[RequestRecord]
) -> Difference:
    try:
        paired = paired_difference(ours, base)
    except ValueError as error:
        raise InputError(f"{run}: {error}") from error
    if paired["difference_ci95"] is None:
        raise InputError(f"{run} holds no requests")
    low, high = paired["difference_ci95"]
    points = 100 * paired["attainment_difference"]
    return Difference(run, other, len(ours), points, (100 * low, 100 * high))
