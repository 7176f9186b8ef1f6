"""What a bench knows of emulated servers: their device, and the steps that it logs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import StepRow, read_emulated_steps


class StepReader:
    """Follows a step log: each call of ``new`` gives the steps since the last one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0

    def new(self) -> list[StepRow]:
        """Steps that have ended since the last call; none before the log exists."""
        if not self._path.is_file():
            return []
        rows = read_emulated_steps(self._path, skip=self._read)
        self._read += len(rows)
        return rows


@dataclass(frozen=True, slots=True)
class EmulatedServers:
    """What a bench knows of its emulated servers: their device and where it logs its steps."""

    profile: EngineProfile
    ours: StepReader
    stock: StepReader | None

    def steps_of(self, stock: bool) -> StepReader:
        """The steps of one of the servers; ValueError for one that is not up."""
        reader = self.stock if stock else self.ours
        if reader is None:
            raise ValueError("no stock server is up")
        return reader
