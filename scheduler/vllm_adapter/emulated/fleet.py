"""Engines side by side in one process and in warped time: vLLM's schedulers and KV managers.

No API server and no sockets: what a request costs there is left out. Enter
``WarpClock.installed`` before importing vLLM or the project's engine.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.scheduler.serving.wire.seal import sealed
from lengthwise.scheduler.vllm_adapter.emulated.emulated_front import EngineRequest, Front
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import (
    StepRow,
    StepSummary,
    StepTally,
)
from lengthwise.scheduler.vllm_adapter.emulated.nominal_time import NominalTime, pace_plans
from lengthwise.scheduler.vllm_adapter.emulated.options import (
    EMULATE_KEY,
    EXECUTOR,
    block_tokens,
    caches_prefixes,
    context_tokens,
    emulable_profile,
    speculative_config,
)
from lengthwise.scheduler.vllm_adapter.emulated.warp import WarpClock
from lengthwise.scheduler.vllm_adapter.vllm_config import CONFIG_KEY
from lengthwise.scheduler.vllm_adapter.worker.replay import REPLAY_ID

_EOS_TOKEN = 2  # of the tiny model
# A thread would plan in real time, while the engine's jumps ahead; a search that its time ends
# would not repeat, so its steps end it.
_WARPED: dict[str, Any] = {"plan_in_thread": False, "plan_budget_ms": 1000.0}


@dataclass(slots=True)
class Served:
    """What became of a request: which engine, when its tokens came, why it ended."""

    engine: int
    first_s: float | None = None
    last_s: float | None = None
    tokens: int = 0
    reason: str | None = None


def make_core(
    profile: str,
    model_dir: Path | str,
    *,
    settings: Mapping[str, Any] | None = None,
    scheduler_cls: str | None = None,
    replay_table: Path | str | None = None,
    async_scheduling: bool = True,
    **engine_args: Any,
) -> Any:
    """A vLLM ``EngineCore`` with the limits of ``profile`` (name or file) on an emulated device.

    Args:
        profile: of the engine; it also says whether prefixes are cached.
        model_dir: a model's folder, for its tokenizer and configuration.
        settings: of our scheduler, as ``ServerSettings`` takes them, but for how it plans.
        scheduler_cls: dotted name of a scheduler; None for vLLM's own.
        replay_table: answer lengths by request name.
        async_scheduling: whether a step is scheduled while the one before runs.
        engine_args: further arguments of vLLM's ``EngineArgs``; they win.

    Raises:
        InputError: a profile that cannot be emulated.
    """
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.executor.abstract import Executor

    emulated = emulable_profile(profile)
    own: dict[str, Any] = {
        EMULATE_KEY: {"profile": str(profile), "async_scheduling": async_scheduling}
    }
    if replay_table is not None:
        own["replay_table"] = str(replay_table)
    if settings is not None:
        own["settings"] = dict(settings) | _WARPED
    limits = emulated.capacity
    args: dict[str, Any] = {
        "model": str(model_dir),
        "load_format": "dummy",
        "dtype": "float32",
        "enforce_eager": True,
        "block_size": block_tokens(emulated),
        "distributed_executor_backend": EXECUTOR,
        "enable_prefix_caching": caches_prefixes(emulated),
        "max_model_len": context_tokens(emulated),
        "max_num_seqs": limits.max_num_seqs,
        "max_num_batched_tokens": limits.max_num_batched_tokens,
        "speculative_config": speculative_config(emulated),
        "additional_config": {CONFIG_KEY: own},
    }
    if scheduler_cls is not None:
        args["scheduler_cls"] = scheduler_cls
    config = EngineArgs(**(args | engine_args)).create_engine_config()
    return EngineCore(config, Executor.get_class(config), log_stats=False)


class Engine:
    """An engine, the time it is there, and what is on its way to it."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.at_s = 0.0
        self.host_cpu_s: list[float] = []
        self.preemptions = 0
        self._tally = StepTally()
        self._inbox: deque[tuple[float, Any]] = deque()
        self._profile_s = 0.0
        self._count_preemptions()

    @property
    def busy(self) -> bool:
        """Whether it has anything to do."""
        core = self.core
        return bool(self._inbox or core.batch_queue or core.scheduler.has_requests())

    def send(self, request: EngineRequest, now_s: float) -> None:
        """A request reaches it; it is taken in between two steps, as in a server."""
        if not self.busy:
            self.at_s = max(self.at_s, now_s)
        core_request = _core_request(request, now_s - request.arrival_s)
        self._inbox.append((now_s, self.core.preprocess_add_request(core_request)))

    def step(self) -> list[Any]:
        """One turn of its loop, the clock being at its time; outputs of requests."""
        began_s = time.thread_time()
        while self._inbox and self._inbox[0][0] <= self.at_s:
            self.core.add_request(*self._inbox.popleft()[1])
        groups, executed = self.core.step_fn()
        self.core.post_step(executed)
        self._note(time.thread_time() - began_s)
        return [output for group in (groups or {}).values() for output in group.outputs]

    def steps(self) -> StepSummary:
        """Steps against the profile, had the host's work been waited for.

        A step takes the longer of its profile's time and of the host's processor time for a turn
        of the loop, whatever the clock charged for the latter.
        """
        return self._tally.summary()

    @property
    def prefill_tokens(self) -> int:
        """Prompt tokens computed, those computed again included, cached ones not."""
        return int(self.core.model_executor.driver_worker.prefill_tokens)

    def status(self) -> dict[str, Any] | None:
        """Our scheduler's status; None with another scheduler."""
        ask = getattr(self.core.scheduler, "lengthwise_status", None)
        return None if ask is None else dict(ask())

    def load(self) -> dict[str, Any] | None:
        """What our scheduler publishes to routers; None with another scheduler."""
        ask = getattr(self.core.scheduler, "lengthwise_load", None)
        return None if ask is None else dict(ask())

    def close(self) -> None:
        """Shut the engine down."""
        self.core.shutdown()

    def _count_preemptions(self) -> None:
        scheduler = self.core.scheduler
        preempt = scheduler._preempt_request

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.preemptions += 1
            return preempt(*args, **kwargs)

        scheduler._preempt_request = counted

    def _note(self, host_s: float) -> None:
        self.host_cpu_s.append(host_s)
        total_s = self.core.model_executor.driver_worker.profile_s
        step_s, self._profile_s = total_s - self._profile_s, total_s
        if step_s > 0:
            late = host_s > step_s
            self._tally.add(StepRow(self.at_s, step_s, max(step_s, host_s), 0, 0, 0, late))


def paced_planner(engine: Engine, clock: WarpClock) -> NominalTime | None:
    """Pace the plans of our scheduler by their nominal time; None with another scheduler.

    That is at most the planning budget of a server that is not told otherwise.
    """
    core = getattr(engine.core.scheduler, "core", None)
    if core is None:
        return None
    return pace_plans(core.planner, clock, ServerSettings().plan_budget_ms / 1e3)


def play(
    clock: WarpClock,
    engines: Sequence[Engine],
    requests: Iterable[EngineRequest],
    front: Front,
    on_end: Callable[[], None] = lambda: None,
) -> dict[str, Served]:
    """Serve all requests, sent on by ``front``; by name what became of each.

    What happens next is an arrival, a look of the front at what it holds back, or the turn of the
    engine furthest behind. ``on_end`` is called as each request ends.

    Raises:
        InputError: a request that no engine of these can ever hold.
    """
    coming = deque(sorted(requests, key=lambda request: request.arrival_s))
    for request in coming:
        _check_fits(request, engines)
    served: dict[str, Served] = {}
    while True:
        behind = min((e for e in engines if e.busy), key=lambda e: e.at_s, default=None)
        arrival_s = coming[0].arrival_s if coming else math.inf
        look_s = front.next_s()
        turn_s = math.inf if behind is None else behind.at_s
        now_s = min(arrival_s, look_s, turn_s)
        if math.isinf(now_s):
            return served
        clock.set(now_s)
        if arrival_s == now_s or look_s == now_s:
            arrived = arrival_s == now_s
            sent = front.offer(coming.popleft(), now_s) if arrived else front.look(now_s)
            for request, index in sent:
                served[request.name] = Served(index)
                engines[index].send(request, now_s)
        elif behind is not None:
            outputs = behind.step()
            behind.at_s = clock.now()
            front.turned(engines.index(behind))
            for output in outputs:
                one = served[output.request_id]
                if output.new_token_ids:
                    one.first_s = behind.at_s if one.first_s is None else one.first_s
                    one.last_s = behind.at_s
                    one.tokens += len(output.new_token_ids)
                if output.finish_reason is not None:
                    one.reason = str(output.finish_reason)
                    front.ended(output.request_id, behind.at_s)
                    on_end()


def _check_fits(request: EngineRequest, engines: Sequence[Engine]) -> None:
    most = min(int(e.core.vllm_config.model_config.max_model_len) for e in engines)
    if len(request.prompt_token_ids) + 1 > most:
        raise InputError(
            f"request {request.name}: a prompt of {len(request.prompt_token_ids)} tokens and an "
            f"answer do not fit in the engine's {most} tokens"
        )


def _core_request(request: EngineRequest, held_s: float) -> Any:
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    xargs = sealed({REPLAY_ID: request.name} | dict(request.xargs))
    params = SamplingParams(max_tokens=request.max_tokens, extra_args=xargs)
    params.update_from_generation_config({}, _EOS_TOKEN)
    return EngineCoreRequest(
        request_id=request.name,
        prompt_token_ids=request.prompt_token_ids,
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=time.time() - held_s,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
