"""A client of the middleware, which stands before an application that echoes what it is sent."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass
from types import SimpleNamespace

import httpx
import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.vllm_adapter.api.routes import READERS
from lengthwise.scheduler.vllm_adapter.api.vllm_middleware import LengthwiseMiddleware

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
TABLE = {"chat": {"ttft_ms": 3000.0}, "code": {"e2e_ms": 20000.0}}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
UNREAD = ("/v1/embeddings", "/v1/audio/transcriptions")


class WordPredictor:
    """Predicts ten tokens a word at every level times (1 + level); fails or stalls on demand."""

    version = "words/1"
    feature_contract = "words"
    levels = LEVELS

    def __init__(self):
        self.calls = []
        self.error = None
        self.stall_s = 0.0

    def predict(self, prompts, slo_class=None, rows=None):
        self.calls.append(list(prompts))
        time.sleep(self.stall_s)
        if self.error:
            raise self.error
        words = np.array([[10.0 * len(p.split())] for p in prompts])
        return SimpleNamespace(quantiles=words * (1 + np.array(LEVELS)))

    def features(self, prompts, slo_class=None):
        return np.array([[len(p.split()), np.nan] for p in prompts], dtype=np.float32)

    def class_gaussian(self, slo_class):
        return np.full(len(LEVELS), 77.0 if slo_class == "chat" else 55.0)


class FakeEngineCore:
    def __init__(self):
        self.asked = []
        self.answer = {"policy": "sa", "lengths": "learned"}

    async def call_utility_async(self, method, *args):
        self.asked.append((method, *args))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@dataclass
class Params:
    """What of vLLM's sampling parameters our side reads."""

    extra_args: dict | None = None
    n: int = 1
    max_tokens: int | None = None
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: list | None = None


def engine_groups(path, body):
    """How many sequence groups vLLM starts for a body, as its own routes do."""
    if path.endswith("/batch"):
        return len(body["messages"])
    prompt = body.get("prompt")
    if path == COMPLETIONS and isinstance(prompt, list) and not isinstance(prompt[0], int):
        return len(prompt)
    return 1


async def serve(request: Request):
    """As vLLM: a JSON object starts its sequences, all of them with one `extra_args`."""
    body = await request.body()
    assert int(request.headers["content-length"]) == len(body)
    try:
        received = json.loads(body)
    except (ValueError, RecursionError):
        return JSONResponse({"raw": repr(body)}, status_code=400)
    if not isinstance(received, dict) or request.url.path == "/v1/embeddings":
        return JSONResponse(received)
    client = request.app.state.engine_client
    sampling = received.get("sampling_params") or received
    extra = sampling.get("extra_args") or received.get("vllm_xargs")
    told = []
    for index in range(engine_groups(request.url.path, received)):
        names = ("n", "max_tokens", "min_tokens", "ignore_eos", "stop")
        given = {name: sampling[name] for name in names if name in sampling}
        params = Params(extra, **given)
        before = json.dumps(extra)
        told.append(await client.generate({"prompt_token_ids": [1]}, params, f"r-{index}"))
        assert json.dumps(params.extra_args) == before  # shared by all sequences: not to be touched
    if received.get("stream"):
        return StreamingResponse(
            (f"data: {i}\n\n" for i in range(3)), media_type="text/event-stream"
        )
    shown = [{k: v for k, v in (one or {}).items() if k != "lw_seal"} for one in told]
    return JSONResponse(received | {"vllm_xargs": shown[0], "told": shown})


class Client:
    """A server under test: `post` returns the answer, `received` what the echo was given."""

    def __init__(self, predictor=None, inline=False, **settings):
        app = Starlette(
            routes=[Route(path, serve, methods=["POST"]) for path in (*READERS, *UNREAD, "/v1/new")]
        )
        self.core = FakeEngineCore()
        self.started = []  # the extra arguments of every sequence that reached the engine
        app.state.engine_client = SimpleNamespace(engine_core=self.core, generate=self._generate)
        self.app = app
        settings = make_settings({"slo_table": TABLE} | settings)
        self.service = PredictionService(settings, api_metrics(), predictor, inline)
        self.asgi = LengthwiseMiddleware(self._with_app(app), settings, self.service)

    async def _generate(self, prompt, params, request_id):
        self.started.append(params.extra_args)
        return params.extra_args

    def _with_app(self, app):
        async def inner(scope, receive, send):
            await app(scope, receive, send)

        return inner

    async def _call(self, method, path, **kwargs):
        async def entry(scope, receive, send):
            scope["app"] = self.app
            await self.asgi(scope, receive, send)

        transport = httpx.ASGITransport(app=entry)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **kwargs)

    def call(self, method, path, **kwargs):
        return asyncio.run(self._call(method, path, **kwargs))

    def post(self, path, body, headers=None):
        return self.call("POST", path, json=body, headers=headers)

    def xargs(self, body, headers=None, path=COMPLETIONS):
        answer = self.post(path, body, headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["vllm_xargs"]

    def close(self):
        """Write what is queued of the prompts' texts."""
        if self.asgi.front.texts is not None:
            self.asgi.front.texts.close()

    def told(self, body, headers=None, path=COMPLETIONS):
        """What each of the request's sequences is told."""
        answer = self.post(path, body, headers)
        assert answer.status_code == 200, answer.text
        return answer.json()["told"]
