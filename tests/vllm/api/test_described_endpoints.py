"""The endpoints answer as docs/operations/openapi.yaml describes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import schemathesis
from echo_client import Client, WordPredictor
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection
from starlette.responses import JSONResponse

from lengthwise.scheduler.serving.api.own_routes import (
    CONFIGURE_PATH,
    RELOAD_PATH,
    STATUS_PATH,
)
from lengthwise.scheduler.vllm_adapter.api.routes import READERS

OPENAPI = Path(__file__).parents[3] / "docs" / "operations" / "openapi.yaml"


class StubServer(Client):
    """vLLM's answers to what it is given: an object, or 400 for what is no completion request."""

    def __init__(self) -> None:
        super().__init__(WordPredictor(), allow_configure=True, slo_table={})

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        scope["app"] = self.app
        await self.asgi(scope, receive, send)

    def _with_app(self, app):
        async def inner(scope, receive, send):
            raw = (await receive()).get("body", b"")
            try:
                good = isinstance(json.loads(raw), dict)
            except ValueError:
                good = False
            status, body = (200, {"id": "cmpl"}) if good else (400, REFUSED)
            await JSONResponse(body, status)(scope, receive, send)

        return inner


REFUSED = {"error": {"message": "no JSON object", "type": "BadRequestError", "code": 400}}
SCHEMA = schemathesis.openapi.from_path(OPENAPI)
SCHEMA.app = StubServer()
OURS = [("POST", CONFIGURE_PATH)]
GENERATING = [path for path in READERS if path != "/cohere/v2/chat"]  # needs a library of its own
ROUTES = [*OURS, *(("POST", path) for path in GENERATING)]
POSITIVE = [("GET", STATUS_PATH), *ROUTES, ("POST", RELOAD_PATH)]


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [(*route, GenerationMode.POSITIVE) for route in POSITIVE]
    + [(*route, GenerationMode.NEGATIVE) for route in ROUTES],
)
def test_the_endpoints_answer_as_described(method, path, mode):
    # what else stands in a completion's body is vLLM's to refuse, which the stub does not
    unchecked = [] if (method, path) in OURS else [negative_data_rejection]

    @settings(
        max_examples=20, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
    )
    @given(SCHEMA[path][method].as_strategy(generation_mode=mode))
    def check(case):
        case.call_and_validate(excluded_checks=unchecked)

    check()
