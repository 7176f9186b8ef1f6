"""The vLLM surface that the emulated device stands on; none of it is a public interface."""

from __future__ import annotations

import dataclasses
import inspect
import json
from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import AsyncModelRunnerOutput, DraftTokenIds, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes, WorkerBase

from lengthwise.data.errors import InputError
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.vllm_adapter.emulated.device import Answers, Scheduled
from lengthwise.scheduler.vllm_adapter.emulated.fleet import make_core
from lengthwise.scheduler.vllm_adapter.emulated.options import (
    EMULATE_VARIABLE,
    emulable_profile,
    read_options,
)
from lengthwise.scheduler.vllm_adapter.emulated.refusals import Refusals
from lengthwise.scheduler.vllm_adapter.emulated.worker import scheduled_rows
from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model
from lengthwise.scheduler.vllm_adapter.worker.replay import ReplayTable, write_replay_table


def parameters(function):
    return set(inspect.signature(function).parameters)


def test_vllm_still_has_what_the_device_uses():
    assert {"_init_executor", "collective_rpc", "execute_model", "sample_tokens"} <= set(
        dir(UniProcExecutor)
    )
    assert {"non_block", "scheduler_output"} <= parameters(UniProcExecutor.execute_model)
    assert "get_output" in dir(AsyncModelRunnerOutput)
    assert {"req_ids", "req_id_to_index", "sampled_token_ids"} <= parameters(ModelRunnerOutput)
    assert {"req_ids", "num_computed_tokens", "num_output_tokens", "resumed_req_ids"} <= parameters(
        CachedRequestData
    )
    assert {"req_id", "prompt_len", "prefill_token_ids", "num_computed_tokens"} <= set(
        dir(NewRequestData)
    ) | {f.name for f in dataclasses.fields(NewRequestData)}
    assert {
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "num_scheduled_tokens",
        "total_num_scheduled_tokens",
        "finished_req_ids",
        "scheduled_spec_decode_tokens",
    } <= parameters(SchedulerOutput)
    assert {"req_ids", "draft_token_ids"} <= parameters(DraftTokenIds)
    assert {"block_size", "num_kv_heads", "head_size", "dtype"} <= parameters(FullAttentionSpec)
    assert {"language_model", "encoder"} <= parameters(CompilationTimes)
    assert {
        "init_device",
        "load_model",
        "get_kv_cache_spec",
        "compile_or_warm_up_model",
    } <= set(dir(WorkerBase))
    assert {"preprocess_add_request", "add_request", "post_step", "step_with_batch_queue"} <= set(
        dir(EngineCore)
    )


@pytest.mark.parametrize("is_async", [True, False])
def test_an_engine_takes_the_profile_for_its_limits(tmp_path, is_async):
    model, limits = build_tiny_model(tmp_path / "tiny"), load_profile("tiny-cpu").capacity
    core = make_core("tiny-cpu", model, async_scheduling=is_async)
    try:
        assert core.batch_queue_size == (2 if is_async else 1)
        assert type(core.scheduler).__name__ == ("AsyncScheduler" if is_async else "Scheduler")
        config = core.vllm_config
        assert (
            config.cache_config.num_gpu_blocks * config.cache_config.block_size == limits.kv_tokens
        )
        assert config.scheduler_config.max_num_seqs == limits.max_num_seqs
        assert core.scheduler.max_num_scheduled_tokens == limits.max_num_batched_tokens
        assert not config.cache_config.enable_prefix_caching
    finally:
        core.shutdown()


def cached(resumed=(), **rows):
    return SimpleNamespace(
        req_ids=list(rows),
        num_computed_tokens=[c for c, _ in rows.values()],
        num_output_tokens=[o for _, o in rows.values()],
        resumed_req_ids=resumed,
    )


def new_request(req_id, prompt_len, computed, prefill_token_ids=None, **params):
    sampling = SamplingParams(max_tokens=100, extra_args={"replay_id": req_id}, **params)
    sampling.update_from_generation_config({}, 2)
    return SimpleNamespace(
        req_id=req_id,
        prompt_len=prompt_len,
        num_computed_tokens=computed,
        prefill_token_ids=prefill_token_ids,
        sampling_params=sampling,
    )


def test_rows_of_a_step_in_both_contracts_of_vllm(tmp_path):
    write_replay_table(tmp_path / "table.json", {"a": 3, "v2": 6})
    lengths, answers = ReplayTable(str(tmp_path / "table.json")), Answers([7])
    output = SimpleNamespace(
        num_scheduled_tokens={"a": 4, "v2": 15, "free": 5},
        scheduled_spec_decode_tokens={},
        # "v2" resumes as V2 runners are told of it: as new, with 5 tokens of its answer
        scheduled_new_reqs=[
            new_request("a", 10, 6),
            new_request("v2", 10, 0, list(range(15))),
            new_request("free", 5, 0, min_tokens=2),
        ],
        scheduled_cached_reqs=cached(),
    )
    rows = list(scheduled_rows(output, answers, lengths))
    assert rows == [Scheduled("a", 6, 4), Scheduled("v2", 0, 15), Scheduled("free", 0, 5)]
    # "v2" has 5 tokens, so that this step samples its sixth and last; "free" never ends by itself
    assert answers.step(rows).sampled == [[7], [2], [7]]
    decode = SimpleNamespace(
        num_scheduled_tokens={"a": 3},
        scheduled_spec_decode_tokens={"a": [-1, -1]},
        scheduled_new_reqs=[],
        scheduled_cached_reqs=cached(a=(10, 1)),
    )
    rows = list(scheduled_rows(decode, answers, lengths))
    assert rows == [Scheduled("a", 10, 3, 2)]
    assert answers.step(rows).sampled == [[7]]
    again = SimpleNamespace(  # preempted: the token under way was dropped, and comes again
        num_scheduled_tokens={"a": 11},
        scheduled_spec_decode_tokens={},
        scheduled_new_reqs=[],
        scheduled_cached_reqs=cached({"a"}, a=(0, 1)),
    )
    assert answers.step(scheduled_rows(again, answers, lengths)).sampled == [[7]]
    again.num_scheduled_tokens, again.scheduled_cached_reqs = {"a": 1}, cached(a=(11, 2))
    assert answers.step(scheduled_rows(again, answers, lengths)).sampled == [[2]]


@pytest.mark.parametrize(
    "params",
    [{"logprobs": 1}, {"prompt_logprobs": 2}],
)
def test_probabilities_are_refused(params):
    with pytest.raises(ValueError, match="no probabilities to give"):
        Refusals.validate_params(SamplingParams(**params))


def test_structured_outputs_are_refused_and_plain_requests_are_not():
    structured = SimpleNamespace(structured_outputs=object())
    with pytest.raises(ValueError, match="follows no grammar"):
        Refusals.validate_params(structured)
    Refusals.validate_params(SamplingParams(max_tokens=5, temperature=0.5))


def test_options_come_from_the_configuration_or_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv(EMULATE_VARIABLE, raising=False)
    given = {"lengthwise": {"emulate": {"profile": "tiny-cpu", "async_scheduling": False}}}
    assert read_options(given).async_scheduling is False
    with pytest.raises(InputError, match="needs LENGTHWISE_EMULATE"):
        read_options({})
    path = tmp_path / "emulate.json"
    monkeypatch.setenv(EMULATE_VARIABLE, str(path))
    with pytest.raises(InputError, match="cannot read emulation options"):
        read_options({})
    path.write_text(json.dumps({"profile": "tiny-cpu", "step_log": "steps.jsonl"}))
    assert read_options({}).step_log == "steps.jsonl"
    path.write_text(json.dumps({"profile": "tiny-cpu", "speed": 2}))
    with pytest.raises(InputError, match=r"unknown emulation options \['speed'\]"):
        read_options({})


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"kv_tokens": 16}, "kv_tokens must be at least two blocks of 16, got 16"),
        ({"max_num_batched_tokens": 8}, "must be at least max_num_seqs, 32, got 8"),
    ],
)
def test_a_profile_that_vllm_would_refuse_is_told_before_it_starts(tmp_path, limits, message):
    values = json.loads(load_profile("tiny-cpu").to_json())
    path = tmp_path / "small.json"
    path.write_text(json.dumps(values | {"capacity": values["capacity"] | limits}))
    with pytest.raises(InputError, match=message):
        emulable_profile(path)
