"""What people see: messages, tables and progress on stderr; results on stdout."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.console import Console


PIPE_WIDTH = 160
TOLD_EVERY_S = 10.0
LONGER = 1.5


def standard_streams() -> None:
    """Give the process the streams it was started without (`>&-`): what goes there is lost.

    Without them the next file that is opened, a database perhaps, would get their number.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115, PTH123


def flush_stdout() -> None:
    """Write what is still held back; where that fails, nothing of it is tried again at exit."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # a stream without a number
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


class Steps(Protocol):
    """Progress of work that falls into named steps."""

    def step(self, description: str, total: int | None = None) -> None:
        """Begin a step; ``total`` is what ``advance`` counts up to, if known."""

    def advance(self, amount: int = 1) -> None:
        """Count within the step."""


class Megabytes:
    """Told of bytes read (`data.lines.Watch`), counts megabytes of a file or folder in a step."""

    def __init__(self, steps: Steps, source: str) -> None:
        self._steps = steps
        self._source = Path(source)
        self._bytes = self._shown = self._total = 0

    def __call__(self, count: int) -> None:
        """Count bytes; the first call begins the step."""
        if not self._bytes:
            files = self._source.glob("*") if self._source.is_dir() else [self._source]
            self._total = sum(file.stat().st_size for file in files if file.is_file())
            megabytes = round(self._total / 1e6) or None
            self._steps.step(f"reading {self._source.name} (MB)", megabytes)
        self._bytes += count
        whole = self._bytes // 1_000_000 - self._shown
        if whole:
            self._steps.advance(whole)
            self._shown += whole
        if self._bytes == self._total:
            self._steps.step("counting tokens")


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
    """Steps as bars with elapsed time on stderr, silent if ``quiet``.

    Where stderr is no terminal, a line after ``TOLD_EVERY_S``, within a step ever more seldom:
    nothing for what is soon done.
    """
    if quiet:
        yield SilentSteps()
        return
    if not sys.stderr.isatty():
        with _ToldSteps() as told:
            yield told
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


class _ToldSteps:
    """Steps as a line now and then, from a thread of its own: a step may be long."""

    def __init__(self) -> None:
        self._what, self._done, self._total = "starting", 0, None
        self._wait_s = TOLD_EVERY_S
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="progress", daemon=True)
        self._begun_s = time.monotonic()

    def __enter__(self) -> _ToldSteps:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def step(self, description: str, total: int | None = None) -> None:
        self._what, self._done, self._total = description, 0, total
        self._wait_s = TOLD_EVERY_S

    def advance(self, amount: int = 1) -> None:
        self._done += amount

    def _tell(self) -> None:
        while not self._ended.wait(self._wait_s):
            self._wait_s *= LONGER
            done = f" {self._done:,}" if self._done else ""
            done += f" of {self._total:,}" if done and self._total else ""
            print(
                f"lengthwise: {time.monotonic() - self._begun_s:.0f} s: {self._what}{done}",
                file=sys.stderr, flush=True,
            )  # fmt: skip


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


def stage_printer() -> Callable[[str], None]:
    """Prints one line per stage on stderr with the seconds since this call."""
    started_s = time.perf_counter()
    printer = stderr()

    def say(text: str) -> None:
        printer.print(
            f"[{time.perf_counter() - started_s:6.1f} s] {text}", markup=False, soft_wrap=True
        )

    return say


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
