"""Whether the installed vLLM has the hooks this adapter leans on.

vLLM calls its scheduler interface non-public, so every hook is checked against the installed
version: by ``lengthwise doctor``, and by contract tests that ``make vllm-matrix`` runs on every
release of the supported range.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from lengthwise.scheduler.vllm_adapter.supported import SUPPORTED_RANGE, is_supported, vllm_version

_SCHEDULER_METHODS = {
    "add_request": ("request",),
    "schedule": (),
    "update_from_output": ("scheduler_output", "model_runner_output"),
    "_free_request": ("request",),
    "shutdown": (),
}
_SCHEDULER_ATTRIBUTES = (
    "waiting",
    "running",
    "requests",
    "max_num_running_reqs",
    "max_num_scheduled_tokens",
    "num_spec_tokens",
    "block_size",
    "max_model_len",
    "connector",
    "kv_cache_config",
    "kv_cache_manager",
)
_OUTPUT_FIELDS = (
    "scheduled_new_reqs",
    "num_scheduled_tokens",
    "total_num_scheduled_tokens",
    "scheduled_spec_decode_tokens",
)
# Where the server's flags stand: from 0.33 on, in 0.32, and before.
_SERVER_FLAGS = (
    "vllm.entrypoints.common.cli_args",
    "vllm.entrypoints.launchers.cli_args",
    "vllm.entrypoints.openai.cli_args",
)
_LOOKUP = ("block_hash", "kv_cache_group_ids")
_REQUEST_ATTRIBUTES = (
    "num_prompt_tokens",
    "num_computed_tokens",
    "num_output_tokens",
    "num_output_placeholders",
    "arrival_time",
    "max_tokens",
    "sampling_params",
    "status",
    "num_tokens",
    "block_hashes",
)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing the adapter needs: its name, whether it is there, and what was found."""

    name: str
    ok: bool
    detail: str


def probe() -> list[Check]:
    """Check the installed vLLM; imports it (seconds) but starts nothing. Never raises."""
    version = vllm_version()
    if version is None:
        return [Check("vllm", False, "not installed")]
    known = f"supported: {SUPPORTED_RANGE}"
    checks = [Check("vllm", is_supported(version), f"{version} ({known})")]
    for name, check in _CHECKS.items():
        try:
            problem, detail = check()
        except Exception as error:  # a probe reports what it cannot import
            problem, detail = True, f"{type(error).__name__}: {error}"
        checks.append(Check(name, not problem, detail))
    return checks


def _scheduler_hooks() -> tuple[bool, str]:
    cls = import_module("vllm.v1.core.sched.async_scheduler").AsyncScheduler
    missing = []
    for method, parameters in _SCHEDULER_METHODS.items():
        hook = getattr(cls, method, None)
        if hook is None:
            missing.append(method)
            continue
        present = inspect.signature(hook).parameters
        missing += [f"{method}({name})" for name in parameters if name not in present]
    source = "".join(inspect.getsource(base) for base in cls.__mro__ if base is not object)
    missing += [name for name in _SCHEDULER_ATTRIBUTES if f"self.{name}" not in source]
    return _report(missing)


def _queue_contract() -> tuple[bool, str]:
    abstract = import_module("vllm.v1.core.sched.request_queue").RequestQueue.__abstractmethods__
    ours = import_module("lengthwise.scheduler.serving.engine.queue.planned_queue").PlannedQueue
    return _report([name for name in sorted(abstract) if name not in vars(ours)])


def _step_output() -> tuple[bool, str]:
    cls = import_module("vllm.v1.core.sched.output").SchedulerOutput
    return _report([name for name in _OUTPUT_FIELDS if name not in cls.__annotations__])


def _step_limits() -> tuple[bool, str]:
    """Whether a step's token budget is read when it is built, so that it may change."""
    cls = import_module("vllm.v1.core.sched.scheduler").Scheduler
    source = inspect.getsource(cls.schedule)
    return _report([] if "self.max_num_scheduled_tokens" in source else ["token budget of a step"])


def _prefix_cache() -> tuple[bool, str]:
    manager = import_module("vllm.v1.core.kv_cache_manager").KVCacheManager
    source = inspect.getsource(manager)
    missing = [name for name in ("enable_caching", "block_pool") if f"self.{name}" not in source]
    lookup = import_module("vllm.v1.core.block_pool").BlockPool.get_cached_block
    asked = inspect.signature(lookup).parameters
    missing += [f"get_cached_block({name})" for name in _LOOKUP if name not in asked]
    return _report(missing)


def _speculation() -> tuple[bool, str]:
    fields = import_module("vllm.v1.outputs").ModelRunnerOutput.__annotations__
    return _report([n for n in ("req_id_to_index", "sampled_token_ids") if n not in fields])


def _request_fields() -> tuple[bool, str]:
    cls = import_module("vllm.v1.request").Request
    source = inspect.getsource(cls)
    return _report(
        [
            name
            for name in _REQUEST_ATTRIBUTES
            if not hasattr(cls, name) and f"self.{name}" not in source
        ]
    )


def _utility_calls() -> tuple[bool, str]:
    client = import_module("vllm.v1.engine.core_client").AsyncMPClient
    core = import_module("vllm.v1.engine.core").EngineCore
    missing = [] if hasattr(client, "call_utility_async") else ["call_utility_async"]
    return _report(missing + ([] if core else ["EngineCore"]))


def _several_engines() -> tuple[bool, str]:
    """Whether each engine of data parallel can be asked, and a sequence sent to one of them."""
    client = import_module("vllm.v1.engine.core_client").AsyncMPClient
    generate = import_module("vllm.v1.engine.async_llm").AsyncLLM.generate
    missing = [] if hasattr(client, "_call_utility_async") else ["_call_utility_async"]
    source = inspect.getsource(import_module("vllm.v1.engine.core_client"))
    missing += [] if "self.core_engines" in source else ["core_engines"]
    taken = inspect.signature(generate).parameters
    return _report(missing + ([] if "data_parallel_rank" in taken else ["data_parallel_rank"]))


def _logits_processor() -> tuple[bool, str]:
    forced = import_module("lengthwise.scheduler.vllm_adapter.worker.replay").ForcedLength
    v1 = import_module("vllm.v1.sample.logits_processor.interface").LogitsProcessor
    try:
        v2: Any = import_module("vllm.v1.worker.gpu.sample.logits_processor").LogitsProcessor
    except ImportError:
        v2 = None
    abstract: frozenset[str] = getattr(forced, "__abstractmethods__", frozenset())
    missing = [f"abstract {name}" for name in sorted(abstract)]
    missing += [] if issubclass(forced, v1) else ["V1 interface"]
    missing += [] if v2 is None or issubclass(forced, v2) else ["V2 interface"]
    return bool(missing), ", ".join(missing) or ("V1" if v2 is None else "V1 and V2")


def _server_flags() -> tuple[bool, str]:
    source = inspect.getsource(_first_of(*_SERVER_FLAGS))
    engine = inspect.getsource(import_module("vllm.engine.arg_utils"))
    missing = [] if "middleware" in source else ["--middleware"]
    missing += [flag for flag in ("--scheduler-cls", "--logits-processors") if flag not in engine]
    return _report(missing)


def _first_of(*names: str) -> Any:
    """The first module of these that there is; ModuleNotFoundError of the last."""
    for name in names[:-1]:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            continue
    return import_module(names[-1])


def _report(missing: list[str]) -> tuple[bool, str]:
    return bool(missing), f"missing: {', '.join(missing)}" if missing else "as expected"


_CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "scheduler hooks": _scheduler_hooks,
    "waiting queue": _queue_contract,
    "step output": _step_output,
    "request fields": _request_fields,
    "step limits": _step_limits,
    "prefix cache": _prefix_cache,
    "speculation": _speculation,
    "engine calls": _utility_calls,
    "several engines": _several_engines,
    "length replay": _logits_processor,
    "server flags": _server_flags,
}
