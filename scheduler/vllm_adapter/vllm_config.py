"""What vLLM is told of ours, and where in its configuration our settings may stand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lengthwise.scheduler.serving.settings import (
    ServerSettings,
    make_settings,
    read_settings,
    settings_from_environment,
)

SCHEDULER_CLASS = "lengthwise.Scheduler"
MIDDLEWARE_CLASS = "lengthwise.Middleware"

# ``additional_config`` under this key can name the files that the environment names (offline
# ``vllm.LLM``, workers on other hosts), but vLLM hashes it into the key of its compilation cache:
# paths that change would compile anew at every start.
CONFIG_KEY = "lengthwise"
REPLAY_VARIABLE = "LENGTHWISE_REPLAY_TABLE"


def settings_from_additional_config(additional_config: Any) -> ServerSettings:
    """The engine's settings: a path or an object in the configuration, else the environment's.

    An object is for ``vllm.LLM(additional_config={"lengthwise": {"settings": {...}}})``, where no
    server wrote a file.
    """
    given = _configured(additional_config, "settings")
    if given is None:
        return settings_from_environment()
    return make_settings(given) if isinstance(given, Mapping) else read_settings(given)


def replay_table_path(additional_config: Any) -> str | None:
    """The replay table's path: from the configuration, else the environment, else None."""
    return _configured(additional_config, "replay_table") or os.environ.get(REPLAY_VARIABLE)


def _configured(additional_config: Any, name: str) -> Any:
    if not isinstance(additional_config, Mapping):
        return None
    return (additional_config.get(CONFIG_KEY) or {}).get(name)
