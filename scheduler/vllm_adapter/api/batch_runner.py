"""vLLM's batch runner with each line read as its route would be; ``run_batch`` is the command.

The runner calls the routes' handlers itself, without HTTP, so no middleware is there: the lines are
read here before vLLM sees them, and each handler runs under what was found. Objectives stand in a
line's ``body.vllm_xargs`` or in its ``headers``. Settings come from the environment, as for the
server.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from importlib import import_module
from typing import Any

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SloTable
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.body.request_body import ParsedRequest, parse_body
from lengthwise.scheduler.serving.api.call import Call, calling
from lengthwise.scheduler.serving.api.engines import engine_core_of
from lengthwise.scheduler.serving.api.predicting.prediction import load_service
from lengthwise.scheduler.serving.settings import settings_from_environment
from lengthwise.scheduler.vllm_adapter.api.routes import READERS
from lengthwise.scheduler.vllm_adapter.api.vllm_front import VllmFront
from lengthwise.scheduler.vllm_adapter.vllm_config import SCHEDULER_CLASS

_SHUTDOWN_S = 10

Read = ParsedRequest | InputError


class BatchLines:
    """What was read of the lines, for the requests that vLLM makes of them, in their order."""

    def __init__(self, table: SloTable) -> None:
        self._table = table
        self._read: dict[tuple[str, str], deque[Read]] = defaultdict(deque)

    def read(self, text: str) -> str:
        """The file's text for vLLM; what is no request of a route we read stays as it is."""
        return "\n".join(self._line(line) for line in text.split("\n"))

    def take(self, custom_id: str, url: str) -> Read | None:
        """What was read of the next line with this id; None where its route is not read."""
        waiting = self._read.get((custom_id, url))
        return waiting.popleft() if waiting else None

    def _line(self, line: str) -> str:
        try:
            request = json.loads(line)
            reader = READERS[request["url"]]
            custom_id, body = request["custom_id"], json.dumps(request["body"]).encode()
        except (ValueError, RecursionError, KeyError, TypeError):
            return line
        given = request.get("headers")
        given = given if isinstance(given, Mapping) else {}
        headers = {str(name).lower(): str(value) for name, value in given.items()}
        found: Read
        try:
            found = parse_body(body, headers, self._table, reader)
            line = json.dumps(request | {"body": json.loads(found.raw)})
        except InputError as error:
            found = error
            if isinstance(request["body"], dict):  # vLLM would end the run, not refuse the line
                request["body"].pop("vllm_xargs", None)
                line = json.dumps(request)
        self._read[str(custom_id), request["url"]].append(found)
        return line


def install(runner: Any, front: VllmFront, table: SloTable, engine_client: Any) -> None:
    """Put ourselves into vLLM's module ``runner``: where it reads the file and runs a line."""
    lines = BatchLines(table)
    front.attach(engine_client)
    core = engine_core_of(engine_client)
    read_file: Callable[[str], Awaitable[str]] = runner.read_file
    run_request: Callable[..., Awaitable[Any]] = runner.run_request

    async def read(path: str) -> str:
        return lines.read(await read_file(path))

    async def run(handler: Any, request: Any, tracker: Any) -> Any:
        parsed = lines.take(request.custom_id, request.url)
        if parsed is None:
            return await run_request(handler, request, tracker)
        call: Any = None
        if isinstance(parsed, ParsedRequest):
            call = await front.prepare(parsed, core)
        if isinstance(parsed, InputError) or not isinstance(call, Call):
            why = parsed if call is None else "the request cannot meet its SLO now"
            tracker.completed()
            return runner.make_error_request_output(request, error_msg=str(why))
        try:
            with calling(call):
                return await run_request(handler, request, tracker)
        finally:
            front.finished(call, parsed, core)

    runner.read_file, runner.run_request = read, run


def vllm_runner() -> Any:
    """vLLM's module, where this release keeps it."""
    try:
        return import_module("vllm.entrypoints.launchers.run_batch")
    except ImportError:
        return import_module("vllm.entrypoints.openai.run_batch")


def run() -> None:
    """Run vLLM's batch runner, of its own command line, with ours in it."""
    runner = vllm_runner()
    arguments = runner.parse_args()
    if not getattr(arguments, "scheduler_cls", None):
        arguments.scheduler_cls = SCHEDULER_CLASS
    if not getattr(arguments, "shutdown_timeout", 1):
        arguments.shutdown_timeout = _SHUTDOWN_S  # at 0 the engine is killed with its last rows
    settings, metrics = settings_from_environment(), api_metrics()
    front = VllmFront(settings, load_service(settings, metrics), metrics)
    run_batch: Callable[..., Awaitable[None]] = runner.run_batch

    async def ours(engine_client: Any, args: Any) -> None:
        install(runner, front, settings.slos, engine_client)
        await run_batch(engine_client, args)

    runner.run_batch = ours
    try:
        asyncio.run(runner.main(arguments))
    finally:
        if front.texts is not None:
            front.texts.close()
