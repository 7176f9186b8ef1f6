"""A vLLM command line as the arguments of an engine that another program starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from lengthwise.data.errors import InputError

# said elsewhere where a program starts the engine, or of no meaning there
_NOT_ENGINES = frozenset({
    "model", "model_tag", "served_model_name", "host", "port", "uds", "headless", "config",
    "api_server_count", "middleware", "scheduler_cls", "additional_config", "disable_log_stats",
})  # fmt: skip


def engine_kwargs(vllm_args: Sequence[str]) -> dict[str, Any]:
    """What the arguments set, by the names of ``AsyncEngineArgs`` and ``FrontendArgs``.

    Raises InputError for what vLLM's parser refuses.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import FrontendArgs, make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(exit_on_error=False))
    try:
        given = vars(parser.parse_args(list(vllm_args)))
        plain = vars(parser.parse_args([]))
    except (SystemExit, Exception) as error:
        raise InputError(f"vLLM takes no such arguments: {list(vllm_args)}: {error}") from error
    known = {field.name for kind in (AsyncEngineArgs, FrontendArgs) for field in fields(kind)}
    return {
        name: value
        for name, value in given.items()
        if name in known and name not in _NOT_ENGINES and value != plain.get(name)
    }
