"""The server's processes over a run: samples of their memory, its growth, a figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
from scipy.stats import theilslopes

from lengthwise.scheduler.serving.server.server_handle import ServerHandle

PROCESSES = ("api", "engine", "worker")
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Sample:
    """The server at a moment of the run; memory in MB."""

    at_s: float
    done: int
    in_flight: int
    api_mb: float
    engine_mb: float
    worker_mb: float
    api_fds: int
    engine_fds: int
    waiting: int
    longest_wait_s: float
    dropped_rows: int
    fallbacks: float


@dataclass(frozen=True)
class Growth:
    """MB per 10,000 requests after the warm-up: Theil-Sen slope and its 95 % interval."""

    process: str
    slope: float
    low: float
    high: float
    first_mb: float
    last_mb: float


def processes_of(server: ServerHandle) -> dict[str, psutil.Process]:
    """API, engine and worker by their titles."""
    api = psutil.Process(server.process.pid)
    found = {"api": api}
    for child in api.children(recursive=True):
        title = (child.cmdline() or [""])[0]
        for name, part in (("engine", "EngineCore"), ("worker", "Worker")):
            if part in title:
                found[name] = child
    if "engine" not in found:
        raise RuntimeError("the engine runs inside the API process: nothing to tell apart")
    return found


def growth(samples: list[Sample], process: str) -> Growth:
    """Slope of a process's memory over the requests done, after the warm-up."""
    after = [s for s in samples if s.at_s >= WARM_UP_SHARE * samples[-1].at_s]
    memory = np.array([getattr(s, f"{process}_mb") for s in after])
    done = np.array([s.done for s in after]) / 10_000.0
    slope, _, low, high = theilslopes(memory, done, 0.95)
    return Growth(process, *map(float, (slope, low, high, memory[0], memory[-1])))


def plot(samples: list[Sample], path: Path) -> Path:
    """Memory over time, and the queue below it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [s.at_s / 60 for s in samples]
    figure, (memory, queue) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 5), height_ratios=(2, 1), layout="constrained"
    )
    for process in PROCESSES:
        memory.plot(minutes, [getattr(s, f"{process}_mb") for s in samples], label=process)
    memory.set_ylim(bottom=0)
    memory.set_ylabel("resident memory, MB")
    memory.legend(loc="lower right", frameon=False)
    queue.plot(minutes, [s.waiting for s in samples], color="tab:gray")
    queue.set_ylabel("waiting")
    queue.set_xlabel("minutes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
