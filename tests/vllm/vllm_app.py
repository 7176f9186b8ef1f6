"""vLLM's own application, without an engine behind it."""

from __future__ import annotations

import logging
from argparse import Namespace
from typing import Any


def vllm_app(tasks: tuple[str, ...] = ("generate",), **arguments: Any) -> Any:
    """The application that vLLM's server builds of these arguments; a library that it imports on
    the way sets the level of the root logger, which is put back."""
    from vllm.entrypoints.launchers.app import build_app

    usual = {
        "disable_fastapi_docs": True, "enable_offline_docs": False, "root_path": "",
        "api_key": None, "allowed_origins": ["*"], "allow_credentials": False,
        "allowed_methods": ["*"], "allowed_headers": ["*"], "enable_request_id_headers": True,
        "middleware": [], "tokens_only": False,
    }  # fmt: skip
    level = logging.root.level
    try:
        return build_app(Namespace(**(usual | arguments)), tasks)
    finally:
        logging.root.setLevel(level)
