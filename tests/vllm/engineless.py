"""The real scheduler without an engine: vLLM's own bookkeeping, a runner that only counts.

`FakeEngine` does what the engine's busy loop does. Each request ends with end-of-sequence after
the number of tokens it was made with, or at its max_tokens.
"""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from vllm.config import CacheConfig, ModelConfig, SchedulerConfig, VllmConfig
from vllm.sampling_params import SamplingParams
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager

from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
from lengthwise.scheduler.serving.wire.seal import sealed
from lengthwise.scheduler.vllm_adapter.engine.scheduler import LengthwiseScheduler

EOS = 2
BLOCK = 16


def make_request(
    name: str,
    prompt_tokens: int = 8,
    max_tokens: int = 512,
    arrival_time: float | None = None,
    prompt: list[int] | None = None,
    priority: int = 0,
    min_tokens: int = 0,
    resumable: bool = False,
    **extra: Any,
) -> Request:
    """`prompt` gives the token ids and has their blocks hashed, for an engine with a cache;
    `extra` is sealed, as the API process does."""
    params = SamplingParams(
        max_tokens=max_tokens, min_tokens=min_tokens, extra_args=sealed(extra) or None
    )
    params.update_from_generation_config({"eos_token_id": EOS}, EOS)
    return Request(
        request_id=name,
        prompt_token_ids=prompt or [5 + i % 90 for i in range(prompt_tokens)],
        sampling_params=params,
        pooling_params=None,
        arrival_time=arrival_time,
        block_hasher=None if prompt is None else _hasher(),
        priority=priority,
        resumable=resumable,
    )


@lru_cache(maxsize=1)
def _hasher() -> Any:
    from vllm.utils.hashing import sha256
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    init_none_hash(sha256)
    return get_request_block_hasher(BLOCK, sha256)


class FakeEngine:
    """`ahead` steps are planned before the first one's output comes back (2: asynchronous)."""

    def __init__(
        self,
        model_dir: Path,
        settings: dict[str, Any] | None = None,
        *,
        max_num_seqs: int = 4,
        blocks: int = 1000,
        max_num_batched_tokens: int = 256,
        ahead: int = 1,
        prefix_caching: bool = False,
        scheduling_policy: str = "fcfs",
        scheduler_class: type[Any] = LengthwiseScheduler,
    ) -> None:
        # names of classes and reasons are bounded per process; a process of tests has many engines
        engine_metrics()._classes.clear()
        engine_metrics()._reasons.clear()
        cache = CacheConfig(block_size=BLOCK, enable_prefix_caching=prefix_caching)
        config = VllmConfig(
            model_config=ModelConfig(model=str(model_dir), dtype="float32", seed=0),
            scheduler_config=SchedulerConfig(
                max_num_seqs=max_num_seqs,
                max_num_batched_tokens=max_num_batched_tokens,
                max_model_len=2048,
                is_encoder_decoder=False,
                policy=scheduling_policy,
            ),
            cache_config=cache,
            additional_config={
                "lengthwise": {"settings": {"plan_in_thread": False} | (settings or {})}
            },
        )
        cache.num_gpu_blocks = blocks
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        kv = KVCacheConfig(
            num_blocks=blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
        )
        self.scheduler = scheduler_class(
            vllm_config=config,
            kv_cache_config=kv,
            block_size=BLOCK,
            structured_output_manager=StructuredOutputManager(config),
            log_stats=False,
        )
        self.ahead = ahead
        self.lengths: dict[str, int] = {}
        self.tokens: dict[str, int] = {}
        self.admitted: list[str] = []
        self.finished: dict[str, str] = {}
        self.preemptions = 0
        self._flying: deque[Any] = deque()
        self._sampled: dict[str, int] = {}

    def add(self, request: Request, output_tokens: int = 4) -> None:
        self.lengths[request.request_id] = output_tokens
        self.scheduler.add_request(request)

    def step(self) -> None:
        while len(self._flying) < self.ahead:
            output = self.scheduler.schedule()
            self.admitted += [new.req_id for new in output.scheduled_new_reqs]
            self.preemptions += len(output.preempted_req_ids or ())
            for name in output.preempted_req_ids or ():
                if (request := self.scheduler.requests.get(name)) and request.drop_stale_output:
                    self._sampled[name] = request.num_output_tokens  # what was in flight is lost
            if not output.total_num_scheduled_tokens:
                break
            self._flying.append((output, self._run(output)))
        if self._flying:
            self._book(*self._flying.popleft())

    def run(self, most_steps: int = 2000) -> None:
        for _ in range(most_steps):
            if not self.scheduler.has_requests() and not self._flying:
                return
            self.step()
        raise AssertionError(f"not done after {most_steps} steps")

    def abort(self, name: str) -> None:
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def _run(self, output: Any) -> ModelRunnerOutput:
        names = list(output.num_scheduled_tokens)
        tokens = []
        for name in names:
            request = self.scheduler.requests[name]
            # A prefill chunk that does not reach the end of the known tokens samples nothing.
            # num_computed_tokens already counts this step.
            known = request.num_tokens + request.num_output_placeholders
            if request.is_prefill_chunk:
                tokens.append([])
                continue
            assert known >= request.num_prompt_tokens
            self._sampled[name] = self._sampled.get(name, 0) + 1
            done = self._sampled[name] >= self.lengths[name]
            tokens.append([EOS if done else 7])
        index = {name: i for i, name in enumerate(names)}
        return ModelRunnerOutput(req_ids=names, req_id_to_index=index, sampled_token_ids=tokens)

    def _book(self, output: Any, result: ModelRunnerOutput) -> None:
        outputs = self.scheduler.update_from_output(output, result)
        for engine_outputs in outputs.values():
            for one in engine_outputs.outputs:
                name = one.request_id
                self.tokens[name] = self.tokens.get(name, 0) + len(one.new_token_ids)
                if one.finish_reason is not None:
                    self.finished[name] = str(one.finish_reason)
