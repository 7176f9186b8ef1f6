"""Plays workloads on LMDeploy in a process of its environment: a task in, an outcome back."""

from __future__ import annotations

import atexit
import contextlib
import json
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import MAKE, VERSION, start
from lengthwise.scheduler.lmdeploy_adapter.play_messages import PoolTask, read_result, task_line
from lengthwise.scheduler.simulator.sim_workload import SimResult

ALONE = "lmdeploy"  # its own order; with a policy at its pool: lmdeploy+POLICY
_PLUS = f"{ALONE}+"
END_S = 10.0


def is_lmdeploy(policy: str) -> bool:
    """Whether the policy's name says that LMDeploy serves."""
    return policy == ALONE or policy.startswith(_PLUS)


def pool_policy(policy: str) -> str | None:
    """The policy at LMDeploy's pool; None for its own order."""
    return None if policy == ALONE else policy.removeprefix(_PLUS)


def with_lmdeploy(policies: tuple[str, ...]) -> tuple[str, ...]:
    """The policies, LMDeploy's own order, and each policy at its pool."""
    return (*policies, ALONE, *(_PLUS + name for name in policies))


class LmdeployPlayer:
    """One process of LMDeploy's environment, started at once; it plays one task after another.

    Raises:
        InputError: the environment holds another version, or does not start.
    """

    def __init__(self, python: Path) -> None:
        self._lock = threading.Lock()
        # open as long as the process, which writes to it
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
        self._process = start(python, "play", self._errors.fileno())
        version = self._answer().get("version")
        if version != VERSION:
            self.close()
            raise InputError(f"{python} has LMDeploy {version}, not {VERSION}: `{MAKE}` again")

    def play(self, task: PoolTask) -> SimResult:
        """The outcome of a task.

        Raises:
            InputError: LMDeploy cannot serve it.
            RuntimeError: LMDeploy failed.
        """
        with self._lock:
            assert self._process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                print(task_line(task), file=self._process.stdin, flush=True)
            answer = self._answer()
        if "refused" in answer:
            raise InputError(answer["refused"])
        if "failed" in answer:
            raise RuntimeError(f"LMDeploy's process failed: {answer['failed']}")
        return read_result(answer)

    def close(self) -> None:
        """End the process, if it has not ended."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(END_S)
        except Exception:  # whatever keeps it, it holds nothing that must be kept
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().splitlines()[-1:] or ["it said nothing"]
            self.close()
            raise InputError(
                f"LMDeploy's process ended with {self._process.returncode} ({last[0]}): "
                f"`lengthwise doctor` looks at its environment, `{MAKE}` makes it anew"
            )
        return dict(json.loads(line))


@cache
def player_of(python: Path) -> LmdeployPlayer:
    """The process of this interpreter, the same for all who play; it ends with this one."""
    player = LmdeployPlayer(python)
    atexit.register(player.close)
    return player
