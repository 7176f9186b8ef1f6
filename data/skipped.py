"""Rows a reader could not use: counted by reason, each reason with its first place."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lengthwise.data.errors import InputError

MOST_BROKEN_SHARE = 0.5
"""A file is refused when more than this share of its rows breaks a rule, or none is left."""

_VALUE = re.compile(r", got |, has |: | \(")


class NoAnswerError(InputError):
    """A row in order that holds no answer: left out and counted, but no sign of a wrong file."""


@dataclass(slots=True)
class Reason:
    """Why rows were left out: how many, and the first of them."""

    rows: int
    first: str
    message: str


@dataclass(slots=True)
class Skipped:
    """What a reader left out of the rows it read; `torn` are last lines that were cut off."""

    read: int = 0
    broken: int = 0
    torn: int = 0
    reasons: dict[str, Reason] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """How many rows were left out."""
        return sum(reason.rows for reason in self.reasons.values())

    def add(self, place: str, error: InputError) -> None:
        """Count a row; the rule is the error's message up to the value that broke it."""
        self.broken += not isinstance(error, NoAnswerError)
        rule = _VALUE.split(str(error), maxsplit=1)[0]
        if (reason := self.reasons.get(rule)) is not None:
            reason.rows += 1
        elif len(self.reasons) < 100:
            self.reasons[rule] = Reason(1, place, str(error))
        else:
            self.reasons.setdefault("other reasons", Reason(0, place, str(error))).rows += 1

    def check(self, what: str, kept: int) -> None:
        """InputError, naming the first row, where nothing is left or too many rows are broken."""
        if kept and self.broken <= MOST_BROKEN_SHARE * self.read:
            return
        if not self.reasons:
            raise InputError(f"{what}: needs at least one row, got none")
        # what broke most rows says what is wrong with the file
        worst = max(self.reasons.values(), key=lambda reason: reason.rows)
        others = ""
        if self.read > 1:
            most = f", more than {MOST_BROKEN_SHARE:.0%}" if kept else ""
            others = f" ({self.rows} of {self.read} rows cannot be used{most})"
        raise InputError(f"{worst.first}: {worst.message}{others}")

    def to_list(self) -> list[dict[str, Any]]:
        """[{reason, rows, first}], most rows first; `first` is the place and what stood there."""
        ranked = sorted(self.reasons.items(), key=lambda item: -item[1].rows)
        return [
            {"reason": rule, "rows": r.rows, "first": f"{r.first}: {r.message}"}
            for rule, r in ranked
        ]


def skipped_line(entry: dict[str, Any]) -> str:
    """One reason as people read it: `3 rows: response must be text; first: rows.jsonl:7: ...`."""
    rows = f"{entry['rows']:,} row" + ("s" if entry["rows"] != 1 else "")
    return f"{rows}: {entry['reason']}; first: {shown_place(entry['first'])}"


def shown_place(text: str, limit: int = 160) -> str:
    """A place and its message on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."
