"""Whether the installed LMDeploy has every name this adapter leans on.

LMDeploy changes between monthly releases, so one version is pinned and each name is checked:
by ``lengthwise doctor`` and by the tests of ``make lmdeploy``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import VERSION

_SESSIONS = "lmdeploy.serve.managers.session_manager"
_ENGINE = "lmdeploy.pytorch.engine.engine"
_ZMQ = "lmdeploy.pytorch.engine.mp_engine.zmq_engine"
_INSTANCE = "lmdeploy.pytorch.engine.engine_instance"
_CLOCKS = (
    "lmdeploy.pytorch.strategies.ar.sequence",
    "lmdeploy.pytorch.paging.prefill_scheduler",
    "lmdeploy.pytorch.paging.block_manager.base_block_manager",
    "lmdeploy.pytorch.paging.block_trie.checkpoint_lifecycle",
)
_TRIE = "lmdeploy.pytorch.paging.block_trie.kv_lifecycle"


@dataclass(frozen=True, slots=True)
class ContractCheck:
    """One thing the adapter needs: its name, whether it is there, and what was found."""

    name: str
    ok: bool
    detail: str


def probe() -> list[ContractCheck]:
    """Check the installed LMDeploy; imports it (seconds) but starts nothing. Never raises."""
    version = metadata.version("lmdeploy")
    checks = [ContractCheck("lmdeploy", version == VERSION, f"{version} (pinned: {VERSION})")]
    for name, look in _LOOKS.items():
        try:
            missing = sorted(look())
        except Exception as error:  # a probe reports what it cannot import
            missing = [f"{type(error).__name__}: {error}"]
        detail = f"missing: {', '.join(missing)}" if missing else "as expected"
        checks.append(ContractCheck(f"lmdeploy {name}", not missing, detail))
    return checks


def _lacks(owner: Any, *names: str) -> set[str]:
    return {name for name in names if not hasattr(owner, name)}


def _untaken(function: Callable[..., Any], *parameters: str) -> set[str]:
    taken = inspect.signature(function).parameters
    return {f"{function.__name__}({name})" for name in parameters if name not in taken}


def _no_fields(cls: Any, *names: str) -> set[str]:
    return {f"{cls.__name__}.{name}" for name in names} - {
        f"{cls.__name__}.{field.name}" for field in fields(cls)
    }


def _pool() -> Iterable[str]:
    module = import_module(_SESSIONS)
    pool, sessions = module.RequestHandlePool, module.SessionManager
    missing = _lacks(pool, "get", "put", "num_dispatched", "clear")
    missing |= _untaken(pool.__init__, "engine", "size")
    missing |= _lacks(sessions, "get", "remove", "attach_event_loop", "build_request_handle_pool")
    missing |= _lacks(module.Session, "request_handle")
    source = inspect.getsource(module)
    used = ("self.request_handle_pool", "hnd_pool.get()", "hnd_pool.put(")
    return missing | {text for text in used if text not in source}


def _engine() -> Iterable[str]:
    module = import_module(_ENGINE)
    missing = _lacks(module, "build_executor")
    missing |= _lacks(module.Engine, "create_instance", "start_loop", "stop")
    missing |= _untaken(module.Engine.__init__, "model_path", "engine_config")
    infer = import_module(_INSTANCE).EngineInstance.async_stream_infer
    return missing | _untaken(infer, "session_id", "input_ids", "gen_config")


def _executor() -> Iterable[str]:
    base = import_module("lmdeploy.pytorch.engine.executor.base").ExecutorBase
    ours = import_module(
        "lengthwise.scheduler.lmdeploy_adapter.inside.timed_executor"
    ).TimedExecutor
    wanted = ("cache_config", "backend_config", "dist_config", "misc_config")
    missing = _untaken(base.__init__, *wanted)
    own = {name for name in vars(ours) if callable(getattr(ours, name)) and name[0] != "_"}
    return missing | _lacks(base, *own)


def _steps() -> Iterable[str]:
    inputs = import_module("lmdeploy.pytorch.model_inputs")
    missing = _no_fields(inputs.ModelInputsDelta, "indice_cpu")
    wanted = ("seq_length", "history_lengths", "is_chunk", "is_last_chunk")
    missing |= _no_fields(inputs.ModelInputs, *wanted)
    criteria = import_module("lmdeploy.pytorch.strategies.ar.model_agent").ARStoppingCriteria
    missing |= _no_fields(criteria, "num_appendable_ids")
    outputs = import_module("lmdeploy.pytorch.engine.model_agent").BatchedOutputs
    return missing | _no_fields(outputs, "next_token_ids", "stopped")


def _settings() -> Iterable[str]:
    messages = import_module("lmdeploy.messages")
    sizes = ("max_batch_size", "num_gpu_blocks", "block_size", "max_prefill_token_num")
    rest = ("session_len", "enable_prefix_caching", "enable_metrics")
    missing = _no_fields(messages.PytorchEngineConfig, *sizes, *rest)
    missing |= _no_fields(messages.GenerationConfig, "max_new_tokens", "ignore_eos")
    missing |= _no_fields(messages.EngineOutput, "status", "token_ids")
    return missing | _lacks(messages.ResponseType, "SUCCESS", "FINISH")


def _server() -> Iterable[str]:
    """What its own server command is given of ours, whichever of its engines it starts."""
    engine = import_module("lmdeploy.serve.core.async_engine")
    server = import_module("lmdeploy.serve.openai.api_server")
    messages = import_module("lmdeploy.messages")
    missing = _untaken(engine.AsyncEngine.generate, "request", "stream_response")
    missing |= _no_fields(engine.PreprocessedRequest, "session", "input_token_len", "gen_config")
    missing |= _no_fields(engine.GenOut, "finish_reason")
    missing |= _no_fields(messages.GenerationConfig, "min_new_tokens")
    missing |= _no_fields(messages.RequestMetrics, "token_timestamp")
    sizes = ("max_batch_size", "max_prefill_token_num", "session_len")
    missing |= _no_fields(messages.TurbomindEngineConfig, *sizes)
    missing |= _lacks(import_module("lmdeploy.cli.entrypoint"), "run")
    missing |= _lacks(import_module(_ZMQ).ZMQMPEngine, "_mp_proc")
    source = inspect.getsource(server.serve)
    used = ("uvicorn.run(app=app", "AuthenticationMiddleware, tokens=")
    missing |= {text for text in used if text not in source}
    source = inspect.getsource(engine.AsyncEngine)
    used = ("build_request_handle_pool(self.engine", "session.request_handle()")
    return missing | {text for text in used if text not in source}


def _stamps() -> Iterable[str]:
    """That both engines stamp tokens with the wall clock, by which steps are told."""
    stamp = "time.time()"
    agent = inspect.getsource(import_module("lmdeploy.pytorch.engine.model_agent.agent"))
    missing = set() if f"out.new_token_timestamp = {stamp}" in agent else {"stamps of PyTorch's"}
    package = import_module("lmdeploy").__path__[0]  # its own module asks for CUDA
    turbomind = Path(package, "turbomind", "turbomind.py").read_text(encoding="utf-8")
    return missing | (set() if f"token_timestamp={stamp}" in turbomind else {"TurboMind's stamps"})


def _clocks() -> Iterable[str]:
    """That each clock is asked by the name that is replaced."""
    missing = set()
    for name in _CLOCKS:
        if "time.perf_counter()" not in inspect.getsource(import_module(name)):
            missing.add(f"time.perf_counter in {name}")
    if "id(parent), parent)" not in inspect.getsource(import_module(_TRIE)):
        missing.add(f"id of a block in {_TRIE}")
    return missing


_LOOKS: dict[str, Callable[[], Iterable[str]]] = {
    "pool": _pool,
    "engine": _engine,
    "device": _executor,
    "steps": _steps,
    "config": _settings,
    "server": _server,
    "stamps": _stamps,
    "clocks": _clocks,
}
