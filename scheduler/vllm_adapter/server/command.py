"""A server's command line and environment, for either distribution of vLLM."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from lengthwise.data.slo import SloTable
from lengthwise.scheduler.policies.make import check_policy
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.priors import load_priors
from lengthwise.scheduler.serving.server.command_options import given_options, without_given
from lengthwise.scheduler.serving.server.preflight import check_model
from lengthwise.scheduler.serving.server.run_files import RunFiles
from lengthwise.scheduler.serving.settings import SETTINGS_VARIABLE, ServerSettings
from lengthwise.scheduler.vllm_adapter.emulated.options import (
    EMULATE_VARIABLE,
    EmulateOptions,
    server_args,
)
from lengthwise.scheduler.vllm_adapter.server.tiny import TINY_NAME, build_tiny_model
from lengthwise.scheduler.vllm_adapter.supported import check_supported
from lengthwise.scheduler.vllm_adapter.vllm_config import (
    MIDDLEWARE_CLASS,
    REPLAY_VARIABLE,
    SCHEDULER_CLASS,
)

LOGITS_PROCESSOR = "lengthwise.scheduler.vllm_adapter.worker.replay:ForcedLength"

_DATA_PARALLEL = {"--data-parallel-size", "-dp"}
_TINY_KVCACHE_GIB = "1"
_TINY_ARGS: tuple[tuple[str, str | None], ...] = (
    ("--load-format", "dummy"),
    ("--dtype", "float32"),
    ("--served-model-name", TINY_NAME),
    ("--max-num-seqs", "32"),
)
# With a model on this disk and options of these alone, nothing can be asked of a hub. Any other
# may name a tokenizer, an adapter, a draft model, code.
_NAMES_NOTHING = frozenset({
    "--allow-credentials", "--allowed-headers", "--allowed-methods", "--allowed-origins",
    "--api-key", "--api-server-count", "--async-scheduling", "--block-size", "--cpu-offload-gb",
    "--data-parallel-size", "--disable-frontend-multiprocessing", "--disable-log-stats",
    "--disable-uvicorn-access-log", "--distributed-executor-backend", "--dtype",
    "--enable-auto-tool-choice", "--enable-chunked-prefill", "--enable-log-requests",
    "--enable-prefix-caching", "--enable-prompt-tokens-details", "--enable-request-id-headers",
    "--enable-server-load-tracking", "--enable-sleep-mode", "--enforce-eager",
    "--gpu-memory-utilization", "--host", "--kv-cache-dtype", "--kv-cache-memory-bytes",
    "--load-format", "--logits-processors", "--long-prefill-token-threshold", "--max-log-len",
    "--max-logprobs", "--max-model-len", "--max-num-batched-tokens",
    "--max-num-partial-prefills", "--max-num-seqs", "--middleware", "--no-async-scheduling",
    "--no-enable-chunked-prefill", "--no-enable-log-requests", "--no-enable-prefix-caching",
    "--num-gpu-blocks-override", "--pipeline-parallel-size", "--port",
    "--prefix-caching-hash-algo", "--return-tokens-as-token-ids", "--root-path",
    "--scheduler-cls", "--scheduling-policy", "--seed", "--served-model-name",
    "--shutdown-timeout", "--ssl-ca-certs", "--ssl-cert-reqs", "--ssl-certfile",
    "--ssl-keyfile", "--stream-interval", "--swap-space", "--tensor-parallel-size",
    "--tool-call-parser", "--uds", "--uvicorn-log-level", "-tp", "-pp", "-dp",
})  # fmt: skip


def server_command(
    model: str,
    settings: ServerSettings | None,
    vllm_args: Sequence[str] = (),
    *,
    replayed: bool = False,
    cache_dir: Path | str | None = None,
    emulate: EmulateOptions | None = None,
) -> list[str]:
    """The command line, for either distribution; ``settings`` None is stock vLLM."""
    name, extra = model_and_args(model, vllm_args, cache_dir=cache_dir, emulate=emulate)
    command = _entry_point(name)
    if _DATA_PARALLEL & given_options(extra).keys() and "serve" in command:
        # by default vLLM starts one of these for each engine, and each would have its own router
        extra = [*without_given((("--api-server-count", "1"),), extra), *extra]
    if settings is not None:
        check_startable(settings)
        command += ["--scheduler-cls", SCHEDULER_CLASS, "--middleware", MIDDLEWARE_CLASS]
    if replayed and emulate is None:  # an emulated device reads the table itself
        command += ["--logits-processors", LOGITS_PROCESSOR]
    return command + extra


def model_and_args(
    model: str,
    vllm_args: Sequence[str],
    *,
    cache_dir: Path | str | None = None,
    emulate: EmulateOptions | None = None,
) -> tuple[str, list[str]]:
    """Where vLLM finds the model, built if it is ``tiny``, and its arguments with our defaults.

    InputError for a model that is none.
    """
    name, extra = model, list(vllm_args)
    if emulate is not None:
        extra = [*without_given(server_args(emulate), extra), *extra]
    if model == TINY_NAME:
        name = str(build_tiny_model(Path(cache_dir or default_cache()) / TINY_NAME))
        extra = [*without_given(_TINY_ARGS, extra), *extra]
    else:
        check_model(model)
        if model.startswith("~"):
            name = str(Path(model).expanduser())
    return name, extra


def check_startable(settings: ServerSettings) -> None:
    """Find out in a second what a server would only find out after loading its model.

    Raises InputError (or the scheduler core's ValueError) for a vLLM outside the supported range,
    a malformed SLO table, a predictor directory without a card, an unknown profile or an unknown
    policy.
    """
    check_supported()
    SloTable.from_dict(settings.slo_table)
    load_priors(settings.predictor_dir)
    if settings.profile is not None:
        load_profile(settings.profile)
    check_policy(settings.policy, settings.policy_params)


def server_environment(
    model: str,
    settings: ServerSettings | None,
    files: RunFiles,
    replay_table: Path | str | None = None,
    emulate: EmulateOptions | None = None,
    vllm_args: Sequence[str] = (),
) -> dict[str, str]:
    """The environment of a server, which finds its settings and metrics folder in ``files``.

    What the caller's environment sets already wins, except for those files. The hub is switched
    off only where the model and ``vllm_args`` prove that nothing is to be had from it.
    """
    environment = dict(os.environ)
    environment["PROMETHEUS_MULTIPROC_DIR"] = str(files.metrics_folder)
    if settings is not None:
        text = settings.model_dump_json(indent=1)
        environment[SETTINGS_VARIABLE] = str(files.write("settings.json", text))
    if replay_table is not None:
        environment[REPLAY_VARIABLE] = str(Path(replay_table).absolute())
    if emulate is not None:
        environment[EMULATE_VARIABLE] = str(
            files.write("emulate.json", json.dumps(asdict(emulate)))
        )
    defaults = {"PYTHONHASHSEED": "0", "VLLM_NO_USAGE_STATS": "1"}
    if model == TINY_NAME:
        defaults["VLLM_CPU_KVCACHE_SPACE"] = _TINY_KVCACHE_GIB
    engines = data_parallel_size(vllm_args)
    if engines > 1 and computes_on_cpu():
        defaults["VLLM_CPU_OMP_THREADS_BIND"] = cores_of_each(engines, os.sched_getaffinity(0))
    local = model == TINY_NAME or Path(model).expanduser().exists()
    if local and given_options(vllm_args).keys() <= _NAMES_NOTHING:
        defaults["HF_HUB_OFFLINE"] = "1"
    return defaults | environment


def default_cache() -> Path:
    """The workspace's folder for what can be made again."""
    return Path(os.environ.get("LENGTHWISE_HOME") or Path.cwd()).absolute() / ".lengthwise"


def data_parallel_size(vllm_args: Sequence[str]) -> int:
    """How many engines a command line asks for; 1 where it does not say, or not a number."""
    given = given_options(vllm_args)
    said = [given[name] for name in _DATA_PARALLEL if name in given]
    return int(said[0]) if said and said[0] is not None and said[0].isdecimal() else 1


def drain_s(vllm_args: Sequence[str]) -> float:
    """How long vLLM may finish what is in flight once it is asked to stop."""
    given = given_options(vllm_args).get("--shutdown-timeout")
    try:
        return max(0.0, float(given or 0))
    except ValueError:
        return 0.0  # vLLM will refuse it


def cores_of_each(engines: int, cores: Collection[int]) -> str:
    """vLLM's list of the cores that each engine on this machine's CPU has to itself.

    Left to itself it gives the N-th engine the N-th memory node, which few machines have. With
    fewer cores than engines none is bound to any.
    """
    if len(cores) < engines:
        return "nobind"
    share = len(cores) // engines
    each = sorted(cores)
    parts = [each[i * share : (i + 1) * share] for i in range(engines)]
    return "|".join(",".join(map(str, part)) for part in parts)


def computes_on_cpu() -> bool:
    """Whether the installed vLLM is the one for CPUs."""
    try:
        metadata.version("vllm-cpu")
    except metadata.PackageNotFoundError:
        return False
    return True


def _entry_point(model: str) -> list[str]:
    """``vllm serve`` where the ``vllm`` distribution is installed; under ``vllm-cpu`` its command
    line does not start, the server module does."""
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
    return [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
