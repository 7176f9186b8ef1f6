"""How true to its profile an emulated device was: a row a step, and what they amount to."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

LARGEST_RATIO = 1.02  # a run whose steps took more than this times the profile shows the host
_OVER = 1.05


class StepRow(NamedTuple):
    """One step. ``taken_s``: from the end of the one before, None after a rest."""

    end_s: float
    profile_s: float
    taken_s: float | None
    prefill_tokens: int
    decode_seqs: int
    context_tokens: int
    late: bool


@dataclass(frozen=True, slots=True)
class StepSummary:
    """Steps against their profile.

    ``step_ratio``: sum of the times taken over the sum of the profile's, steps after a rest left
    out; None without such steps. ``late_steps``: asked for after they should have ended.
    ``over_5_percent``: share of steps that took 5 % more than the profile says.
    """

    steps: int
    late_steps: int
    step_ratio: float | None
    over_5_percent: float

    @property
    def valid(self) -> bool:
        """Whether the run stands for the profile's engine, not for this host."""
        return self.step_ratio is None or self.step_ratio <= LARGEST_RATIO


class StepTally:
    """Running sums over steps; ``summary()`` at any time."""

    def __init__(self) -> None:
        self._steps = self._late = self._counted = self._over = 0
        self._taken_s = self._profile_s = 0.0

    def add(self, row: StepRow) -> None:
        """Count one step."""
        self._steps += 1
        self._late += row.late
        if row.taken_s is not None:
            self._counted += 1
            self._taken_s += row.taken_s
            self._profile_s += row.profile_s
            self._over += row.taken_s > _OVER * row.profile_s

    def summary(self) -> StepSummary:
        """What the steps so far amount to."""
        ratio = self._taken_s / self._profile_s if self._profile_s > 0 else None
        share = self._over / self._counted if self._counted else 0.0
        return StepSummary(self._steps, self._late, ratio, share)


class EmulatedStepLog:
    """Writes a JSON array a line: the fields of ``StepRow`` in order."""

    def __init__(self, path: Path | str) -> None:
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # a line at a time, so that a reader sees every step that has ended
        self._file: IO[str] = target.open("w", encoding="utf-8", buffering=1)

    def write(self, row: StepRow) -> None:
        """Append one step."""
        taken_s = None if row.taken_s is None else round(row.taken_s, 7)
        self._file.write(
            json.dumps([round(row.end_s, 6), round(row.profile_s, 7), taken_s, *row[3:]]) + "\n"
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_emulated_steps(path: Path | str, skip: int = 0) -> list[StepRow]:
    """The steps of a log from row ``skip`` on; a line still being written is left out."""
    rows = []
    with Path(path).open(encoding="utf-8") as lines:
        for index, line in enumerate(lines):
            if index >= skip and line.endswith("\n"):
                rows.append(StepRow(*json.loads(line)))
    return rows


def summarize_steps(rows: Iterable[StepRow]) -> StepSummary:
    """The summary of finished steps."""
    tally = StepTally()
    for row in rows:
        tally.add(row)
    return tally.summary()
