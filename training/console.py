"""What people see: messages, tables and progress on stderr; results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


PIPE_WIDTH = 160


class Steps(Protocol):
    """Progress of work that falls into named steps."""

    def step(self, description: str, total: int | None = None) -> None:
        """Begin a step; ``total`` is what ``advance`` counts up to, if known."""

    def advance(self, amount: int = 1) -> None:
        """Count within the step."""


class SilentSteps:
    """Steps that show nothing."""

    def step(self, description: str, total: int | None = None) -> None:
        """Ignore."""

    def advance(self, amount: int = 1) -> None:
        """Ignore."""


def stdout() -> Console:
    """Console for results; wide when nobody's terminal decides."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=False)


def stderr() -> Console:
    """Console for messages and progress."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Steps]:
    """Steps as bars with elapsed time on stderr; silent if ``quiet`` or stderr is no terminal."""
    if quiet or not sys.stderr.isatty():
        yield SilentSteps()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=stderr()) as bars:
        steps = _RichSteps(bars)
        yield steps
        steps.close()


class _RichSteps:
    def __init__(self, bars: Any) -> None:
        self._bars = bars
        self._task: Any = None

    def step(self, description: str, total: int | None = None) -> None:
        self.close()
        self._task = self._bars.add_task(description, total=total)

    def advance(self, amount: int = 1) -> None:
        self._bars.advance(self._task, amount)

    def close(self) -> None:
        """Mark the step in hand as done."""
        if self._task is None:
            return
        task = next(t for t in self._bars.tasks if t.id == self._task)
        total = task.total or max(1, task.completed)
        self._bars.update(self._task, total=total, completed=total)


def print_json(document: Any) -> None:
    """One JSON document on one line of stdout; NaN is not JSON and raises ValueError."""
    print(json.dumps(document, allow_nan=False, ensure_ascii=False), flush=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on stdout: the first column left, the others right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD)
    for i, name in enumerate(columns):
        table.add_column(name, justify="right" if i else "left", no_wrap=not i)
    for row in rows:
        table.add_row(*row)
    stdout().print(table)


def print_checks(checks: Sequence[tuple[str, str, str, str]]) -> None:
    """Lines of (ok | warn | fail, what, finding, advice) on stdout."""
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    out = stdout()
    for status, name, detail, advice in checks:
        line = Text.assemble((f"{status:<5}", colours[status]), f"{name:<16}", detail)
        out.print(line, soft_wrap=True)
        if advice:
            out.print(Text(f"{'':<21}-> {advice}", style="bold"), soft_wrap=True)
