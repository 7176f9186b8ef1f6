"""Rows of the fault table: what stands in a line, and those that are done in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.common import interval


@dataclass(frozen=True)
class Metric:
    """What tells of a fault: a counter, and its labels."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        # a bare | would end the table's cell
        inside = ",".join(f'{k}="{v.replace("|", " or ")}"' for k, v in self.labels.items())
        return f"`{self.name}{{{inside}}}`" if inside else f"`{self.name}`"


@dataclass(frozen=True)
class Row:
    """A line of the table; ``ratios`` are our answer tokens a second over stock's, of each pair."""

    fault: str
    injected: str
    sent: int
    lost: int
    lost_stock: int
    twice: int | None
    tells: str
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """The mean of the pairs."""
        return interval(self.ratios)[0] if self.ratios else None

    @property
    def shown_ratio(self) -> str:
        """With its 95 % interval."""
        if not self.ratios:
            return "-"
        mean, half = interval(self.ratios)
        return f"{mean:.2f}" if len(self.ratios) < 2 else f"{mean:.2f} ± {half:.2f}"


class Book:
    """The rows that are done, in a file where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.rows: list[Row] = []
        self._path = path
        if path is not None and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            self.rows = [Row(**json.loads(line)) for line in lines]

    def lacks(self, *faults: str) -> list[str]:
        """Those of these rows that are still to be made."""
        done = {row.fault for row in self.rows}
        return [fault for fault in faults if fault not in done]

    def add(self, row: Row) -> None:
        """Note a row."""
        self.rows.append(row)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                print(json.dumps(asdict(row)), file=file, flush=True)
