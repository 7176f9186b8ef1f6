"""Real servers on an emulated device as a runner, with the steps of every run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import StepSummary, summarize_steps
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.comparison.compare import Comparison, Run, Tick, no_tick
from lengthwise.training.bench.engines.servers import BenchServers
from lengthwise.training.bench.results.emulation import emulation_of, load_average, step_figures
from lengthwise.training.bench.runners.engine_runner import EngineRunner


class EmulatedRunner(EngineRunner):
    """Replays the requests against servers whose device takes a profile's time."""

    def __init__(self, servers: BenchServers, **options: Any) -> None:
        if servers.emulated is None:
            raise ValueError("these servers are not emulated")
        super().__init__(servers, provenance="emulated", **options)
        self.engine = f"{self.engine}, device {servers.emulated.profile.name}"
        self._device = servers.emulated
        self._steps: dict[str, list[StepSummary]] = defaultdict(list)
        self._load = load_average()

    def run(
        self, arm: Arm, requests: Sequence[WorkloadRequest], repeat: int, tick: Tick = no_tick
    ) -> Run:
        """One run of one arm; the steps it took are kept."""
        steps = self._device.steps_of(arm.is_stock)
        steps.new()  # those of the warm-up, or of the arm before
        done = super().run(arm, requests, repeat, tick)
        self._steps[arm.label].append(summarize_steps(steps.new()))
        self._load = max(self._load, load_average())
        return done

    def judged(self, outcome: Comparison) -> Comparison:
        """The outcome with what its steps say of it."""
        every = [summary for own in self._steps.values() for summary in own]
        facts = emulation_of(self._device.profile, every, load_average=self._load)
        diagnostics = {
            label: checks | step_figures(self._steps[label])
            for label, checks in outcome.result.diagnostics.items()
        }
        result = outcome.result.model_copy(update={"emulation": facts, "diagnostics": diagnostics})
        return replace(outcome, result=result)
