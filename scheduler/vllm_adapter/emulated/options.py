"""What an emulated device is told: which profile, synchronous or not, where to log its steps."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lengthwise.data.errors import InputError, shown
from lengthwise.data.files import read_object
from lengthwise.scheduler.profile import EngineProfile, load_profile
from lengthwise.scheduler.vllm_adapter.server.tiny import MAX_MODEL_LEN
from lengthwise.scheduler.vllm_adapter.vllm_config import CONFIG_KEY

# A server's engine process finds its options through this variable, a path; engines that share a
# process through ``additional_config["lengthwise"]["emulate"]``, an object.
EMULATE_VARIABLE = "LENGTHWISE_EMULATE"
EMULATE_KEY = "emulate"
_BLOCK_TOKENS = 16  # vLLM's CPU default of 128 wastes KV cache in a way that no GPU does

_PACKAGE = "lengthwise.scheduler.vllm_adapter.emulated"
EXECUTOR = f"{_PACKAGE}.worker.EmulatedExecutor"
REFUSALS = f"{_PACKAGE}.refusals:Refusals"


@dataclass(frozen=True, slots=True)
class EmulateOptions:
    """``profile``: a name or a file. ``step_log``: a JSON array a step, see ``EmulatedStepLog``."""

    profile: str
    async_scheduling: bool = True
    step_log: str | None = None

    def write(self, path: Path) -> Path:
        """Write the options as JSON; return the path."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path


def read_options(additional_config: Any) -> EmulateOptions:
    """The options of this engine; InputError when there are none or one is unknown."""
    given = None
    if isinstance(additional_config, Mapping):
        given = (additional_config.get(CONFIG_KEY) or {}).get(EMULATE_KEY)
    path = os.environ.get(EMULATE_VARIABLE)
    if given is None and path:
        given = read_object(path, "emulation options")
    if not isinstance(given, Mapping) or "profile" not in given:
        raise InputError(
            f"an emulated engine needs {EMULATE_VARIABLE}, a JSON file with a profile, or "
            f'additional_config {{"{CONFIG_KEY}": {{"{EMULATE_KEY}": {{"profile": ...}}}}}}, '
            f"got {shown(given)}"
        )
    if unknown := set(given) - {field.name for field in fields(EmulateOptions)}:
        raise InputError(f"unknown emulation options {sorted(unknown)}")
    return EmulateOptions(**given)


def emulable_profile(name_or_path: str | Path) -> EngineProfile:
    """The profile; InputError when it is none, or too small for an engine."""
    try:
        profile = load_profile(name_or_path)
    except ValueError as error:
        raise InputError(str(error)) from error
    block = block_tokens(profile)
    if profile.capacity.kv_tokens < 2 * block:  # vLLM keeps one for itself
        raise InputError(
            f"profile {profile.name!r}: kv_tokens must be at least two blocks of {block}, "
            f"got {profile.capacity.kv_tokens}"
        )
    slots, tokens = profile.capacity.max_num_seqs, profile.capacity.max_num_batched_tokens
    if tokens < slots:  # vLLM's own rule, which it tells only once it has loaded
        raise InputError(
            f"profile {profile.name!r}: max_num_batched_tokens must be at least max_num_seqs, "
            f"{slots}, got {tokens}"
        )
    return profile


def block_tokens(profile: EngineProfile) -> int:
    """Tokens of a block of KV cache: the prefix cache's where the profile has one."""
    cache = profile.prefix_cache
    return _BLOCK_TOKENS if cache is None else cache.block_tokens


def context_tokens(profile: EngineProfile) -> int:
    """The longest prompt with its answer: the tiny model's context, or what the KV cache holds."""
    block = block_tokens(profile)
    return min(MAX_MODEL_LEN, (profile.capacity.kv_tokens // block - 1) * block)


def speculative_config(profile: EngineProfile) -> dict[str, Any] | None:
    """vLLM's ``speculative_config`` for the profile's drafts; None without speculation.

    Its method is one that needs no second model and may be scheduled ahead; nobody drafts.
    """
    if profile.speculation is None or profile.speculation.draft_tokens == 0:
        return None
    drafts = profile.speculation.draft_tokens
    return {"method": "ngram_gpu", "num_speculative_tokens": drafts, "prompt_lookup_max": 2}


def server_args(options: EmulateOptions) -> tuple[tuple[str, str | None], ...]:
    """vLLM's flags, with their values, for a server on this device.

    Raises:
        InputError: a profile that cannot be emulated.
    """
    profile = emulable_profile(options.profile)
    limits, caching = profile.capacity, caches_prefixes(profile)
    drafts = speculative_config(profile)
    return (
        ("--distributed-executor-backend", EXECUTOR),
        ("--logits-processors", REFUSALS),
        ("--max-num-seqs", str(limits.max_num_seqs)),
        ("--max-num-batched-tokens", str(limits.max_num_batched_tokens)),
        ("--max-model-len", str(context_tokens(profile))),
        ("--block-size", str(block_tokens(profile))),
        ("--enable-prefix-caching" if caching else "--no-enable-prefix-caching", None),
        ("--enforce-eager", None),
        *(() if drafts is None else (("--speculative-config", json.dumps(drafts)),)),
    )


def caches_prefixes(profile: EngineProfile) -> bool:
    """Whether the profile's engine keeps the KV cache of shared beginnings."""
    return profile.prefix_cache is not None
