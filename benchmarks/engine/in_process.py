"""The middleware before an application that starts sequences and answers, all in one process."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.predicting.prediction import (
    PredictionService,
    load_predictor,
)
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.vllm_adapter.api.vllm_middleware import LengthwiseMiddleware

App = Callable[[Any, Any, Any], Awaitable[None]]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
_PIECE_BYTES = 64 * 1024


@dataclass
class Params:
    """What of vLLM's sampling parameters our side reads."""

    extra_args: dict[str, Any] | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0


class Bare:
    """An application without us: it takes the body and starts so many sequences."""

    def __init__(self) -> None:
        self.started = 0
        self.sequences = 1
        client = SimpleNamespace(engine_core=None, generate=self._generate)
        self.state = SimpleNamespace(engine_client=client)

    def _generate(self, prompt: Any, params: Params, request_id: str) -> None:
        self.started += 1

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        while (await receive()).get("more_body"):
            pass
        for index in range(self.sequences):
            self.state.engine_client.generate(None, Params(), f"r-{index}")
            if index:
                await asyncio.sleep(0)  # of a long list, one is a call of ours, not all
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def fitted_predictor(folder: Path, trees: int) -> Path:
    """A predictor of the built-in corpus, in a folder."""
    from lengthwise.data.sources.synthetic.corpus import synthetic_table
    from lengthwise.data.splits import split_table
    from lengthwise.predictor.fitting.fit import fit_predictor

    parts = split_table(synthetic_table(2000, seed=11))
    predictor = fit_predictor(parts["train"], parts["calibration"], n_estimators=trees)
    predictor.save(folder)
    return folder


def ours_before(
    app: Bare,
    predictor_dir: Path,
    log_dir: Path | None,
    change: Callable[[Any], Any] = lambda predictor: predictor,
    *,
    log_prompts: bool = False,
) -> LengthwiseMiddleware:
    """Our middleware as a server has it; ``change`` may wrap the predictor."""
    given = {} if log_dir is None else {"request_log": str(log_dir), "log_prompts": log_prompts}
    settings = make_settings(
        {"predictor_dir": str(predictor_dir), "slo_table": {"chat": {"ttft_ms": 3000.0}}} | given
    )
    predictor, quick = load_predictor(str(predictor_dir))
    service = PredictionService(settings, api_metrics(), change(predictor), quick)
    return LengthwiseMiddleware(app, settings, service)


async def post(
    entry: App, app: Bare, path: str, raw: bytes, headers: Mapping[str, str] | None = None
) -> int:
    """The status of one POST, its body in pieces as a server hands them over."""
    at = status = 0

    async def receive() -> dict[str, Any]:
        nonlocal at
        if at > len(raw):
            return {"type": "http.disconnect"}
        if at:
            await asyncio.sleep(0)
        piece, at = raw[at : at + _PIECE_BYTES], at + _PIECE_BYTES
        more = at < len(raw)
        at += 0 if more else len(raw) + 1
        return {"type": "http.request", "body": piece, "more_body": more}

    async def send(message: Mapping[str, Any]) -> None:
        nonlocal status
        status = message.get("status", status)

    said = {"content-length": str(len(raw)), **(headers or {})}
    scope = {
        "type": "http", "method": "POST", "path": path, "app": app,
        "headers": [(name.encode(), value.encode()) for name, value in said.items()],
    }  # fmt: skip
    await entry(scope, receive, send)
    return status


def chat(text: str, **more: Any) -> bytes:
    """The body of a chat request of one message."""
    return json.dumps({"messages": [{"role": "user", "content": text}], **more}).encode()
