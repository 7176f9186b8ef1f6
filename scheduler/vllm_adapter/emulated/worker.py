"""The device's place in vLLM: ``--distributed-executor-backend`` names ``EmulatedExecutor``.

The API server, the engine's loop, its scheduler and its KV-cache manager are vLLM's own.
``options.py`` says what it is told, ``device.py`` what it does.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from vllm.config import VllmConfig
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import (
    EMPTY_MODEL_RUNNER_OUTPUT,
    AsyncModelRunnerOutput,
    DraftTokenIds,
    ModelRunnerOutput,
)
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.vllm_adapter.emulated.device import (
    Answers,
    DeviceClock,
    Scheduled,
    StepWork,
    filler_tokens,
)
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import (
    EmulatedStepLog,
    StepRow,
    StepTally,
)
from lengthwise.scheduler.vllm_adapter.emulated.options import (
    EmulateOptions,
    emulable_profile,
    read_options,
)
from lengthwise.scheduler.vllm_adapter.vllm_config import replay_table_path
from lengthwise.scheduler.vllm_adapter.worker.replay import REPLAY_ID, ReplayTable

logger = init_logger("vllm.lengthwise.emulated")

_LAYER = "emulated"
_HEAD_SIZE = 64
_DRAFT = 300  # an ordinary token


class PendingStep(AsyncModelRunnerOutput):
    """A step under way on the device."""

    def __init__(self, worker: EmulatedWorker, work: StepWork, end_s: float) -> None:
        self._worker = worker
        self._work = work
        self._end_s = end_s

    def get_output(self) -> ModelRunnerOutput:
        """Wait until the step ends."""
        left_s = self._end_s - time.monotonic()
        if left_s > 0:
            time.sleep(left_s)
        self._worker.note_end()
        ids = self._work.req_ids
        return ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={req_id: index for index, req_id in enumerate(ids)},
            sampled_token_ids=self._work.sampled,
        )

    def get_kv_connector_output(self) -> None:
        """Nothing is transferred; asked from vLLM 0.33 on."""
        return


class _InFlight(NamedTuple):
    continues: bool
    step_s: float
    late: bool
    work: StepWork


class EmulatedWorker(WorkerBase):
    """Methods in the order in which an engine calls them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.parallel_config.world_size != 1:
            raise ValueError(
                "an emulated device stands for the whole engine: tensor and pipeline parallel "
                f"sizes must be 1, got a world of {self.parallel_config.world_size}"
            )
        options = read_options(self.vllm_config.additional_config)
        self._profile = emulable_profile(options.profile)
        self._step_time = self._profile.scaled_step_time
        self._lengths = ReplayTable(replay_table_path(self.vllm_config.additional_config))
        self.tally = StepTally()
        self.profile_s = 0.0  # of all steps taken on
        self.prefill_tokens = 0
        self._clock = DeviceClock()
        self._pending: PendingStep | None = None
        self._in_flight: deque[_InFlight] = deque()
        self._last_end_s = 0.0
        self._sampled_ids: list[str] = []  # of the last step that ended
        self._log = self._open_log(options)

    def init_device(self) -> None:
        """There is none; tensors would be the processor's."""
        self.device = torch.device("cpu")

    def load_model(self, *, load_dummy_weights: bool = False) -> None:
        """No weights: the tokenizer, for words to answer with."""
        fillers = filler_tokens(cached_tokenizer_from_config(self.model_config))
        speculation = self._profile.speculation
        self._answers = Answers(fillers, speculation.accepted_tokens if speculation else 1.0)

    def get_supported_tasks(self) -> tuple[str, ...]:
        """Generation only."""
        return ("generate",)

    def get_kv_cache_spec(self) -> dict[str, FullAttentionSpec]:
        """One layer, so that a block is a block of the whole model."""
        spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=1,
            head_size=_HEAD_SIZE,
            dtype=torch.float16,
        )
        return {_LAYER: spec}

    def get_supported_kv_cache_layouts(self) -> list[str]:
        """Any would do: nothing is stored."""
        return ["LBHNC"]

    def determine_available_memory(self) -> int:
        """Bytes of a KV cache of the profile's tokens; none are allocated."""
        spec = self.get_kv_cache_spec()[_LAYER]
        return int(self._profile.capacity.kv_tokens // spec.block_size * spec.page_size_bytes)

    def update_max_model_len(self, max_model_len: int) -> None:
        """The engine fitted the context to the KV cache."""
        self.model_config.max_model_len = max_model_len

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Nothing to allocate."""

    def reset_encoder_cache(self) -> None:
        """Nothing is kept; vLLM asks for it when it pauses."""

    def compile_or_warm_up_model(self) -> CompilationTimes:
        """Nothing to compile."""
        return CompilationTimes(language_model=0.0, encoder=0.0)

    def execute_model(self, scheduler_output: Any) -> ModelRunnerOutput | None:
        """Take a step on; ``sample_tokens`` has its result."""
        self._answers.drop(scheduler_output.finished_req_ids)
        if not scheduler_output.total_num_scheduled_tokens:
            return EMPTY_MODEL_RUNNER_OUTPUT
        # Whatever was there before and has not ended was being worked on.
        continues = len(self._answers) > 0
        work = self._answers.step(scheduled_rows(scheduler_output, self._answers, self._lengths))
        step_s = self._step_time.step_s(work.prefill_tokens, work.decode_seqs, work.context_tokens)
        end_s, late = self._clock.enqueue(time.monotonic(), step_s, continues)
        self.profile_s += step_s
        self.prefill_tokens += work.prefill_tokens
        self._pending = PendingStep(self, work, end_s)
        self._in_flight.append(_InFlight(continues, step_s, late, work))
        return None

    def sample_tokens(self, grammar_output: Any) -> PendingStep | None:
        """The step that ``execute_model`` has taken on."""
        pending, self._pending = self._pending, None
        return pending

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        """Drafts for the next step, where steps are not scheduled ahead; any will do."""
        if self._profile.speculation is None:
            return None
        drafts = [_DRAFT] * self._profile.speculation.draft_tokens
        return DraftTokenIds(self._sampled_ids, [list(drafts) for _ in self._sampled_ids])

    def note_end(self) -> None:
        """The oldest step under way ended now."""
        now_s = time.monotonic()
        step = self._in_flight.popleft()
        row = StepRow(
            end_s=now_s,
            profile_s=step.step_s,
            taken_s=now_s - self._last_end_s if step.continues else None,
            prefill_tokens=step.work.prefill_tokens,
            decode_seqs=step.work.decode_seqs,
            context_tokens=step.work.context_tokens,
            late=step.late,
        )
        self._last_end_s = now_s
        self._sampled_ids = step.work.req_ids
        self.tally.add(row)
        if self._log is not None:
            self._log.write(row)

    def shutdown(self) -> None:
        """Say how true the device was to its profile; close the log."""
        logger.info("emulated %s; %d requests left", self.tally.summary(), len(self._answers))
        if self._log is not None:
            self._log.close()

    def _open_log(self, options: EmulateOptions) -> EmulatedStepLog | None:
        if options.step_log is None:
            return None
        index = self.parallel_config.data_parallel_index
        return EmulatedStepLog(f"{options.step_log}.{index}" if index else options.step_log)


def scheduled_rows(output: Any, answers: Answers, lengths: ReplayTable) -> Iterator[Scheduled]:
    """The rows of a vLLM ``SchedulerOutput``; requests new to the device are noted on the way."""
    tokens, drafts = output.num_scheduled_tokens, output.scheduled_spec_decode_tokens
    for new in output.scheduled_new_reqs:
        params = new.sampling_params
        length = lengths.length((params.extra_args or {}).get(REPLAY_ID))
        eos = params.eos_token_id
        if length is None or eos is None:  # ends where vLLM ends it: limit, stop, ignore_eos
            length, eos = None, 0
        else:
            length = max(length, params.min_tokens)
        # vLLM's V2 runners get a resumed request as a new one, with its answer so far.
        sampled = max(0, len(new.prefill_token_ids or ()) - new.prompt_len)
        answers.add(new.req_id, new.prompt_len, length, eos, sampled)
        yield Scheduled(new.req_id, new.num_computed_tokens, tokens[new.req_id])
    cached = output.scheduled_cached_reqs
    for req_id, computed, sampled in zip(
        cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
    ):
        if req_id in cached.resumed_req_ids:
            answers.resume(req_id, sampled)
        yield Scheduled(req_id, computed, tokens[req_id], len(drafts.get(req_id, ())))


class EmulatedExecutor(UniProcExecutor):
    """The worker in the engine's own process, with asynchronous scheduling as on a GPU.

    vLLM's CPU platform switches asynchronous scheduling off; it is read again, when the engine
    builds its batch queue and its scheduler, only after its executor exists. vLLM's wrapper
    around a worker is left out: it looks for Triton kernels in every loaded module and fails on
    llvmlite's, so that no second engine could be made where the first one has loaded numba.
    """

    def _init_executor(self) -> None:
        options = read_options(self.vllm_config.additional_config)
        _check(self.vllm_config, emulable_profile(options.profile))
        self.parallel_config.worker_cls = f"{EmulatedWorker.__module__}.{EmulatedWorker.__name__}"
        self.scheduler_config.async_scheduling = options.async_scheduling
        self.driver_worker = EmulatedWorker(self.vllm_config, 0, 0, "", is_driver_worker=True)
        self.driver_worker.init_device()
        self.driver_worker.load_model()


def _check(config: VllmConfig, profile: EngineProfile) -> None:
    drafts = 0 if profile.speculation is None else profile.speculation.draft_tokens
    if config.num_speculative_tokens != drafts:
        raise ValueError(
            f"profile {profile.name!r} has {drafts} draft tokens a step, the engine was told "
            f"{config.num_speculative_tokens}"
        )
    if config.kv_transfer_config is not None:
        raise ValueError("an emulated device has no KV cache to transfer: no KV connector")
    if config.lora_config is not None:
        raise ValueError("an emulated device has no weights to adapt: no LoRA")
