"""The routes of the soak on a real server: known lengths, and rows under their tenants."""

from __future__ import annotations

import pytest
from replayed_lengths import REPLAYED
from test_engine import post
from test_routes_live import rows_of

from benchmarks.engine.soak.soak_routes import ROUTES
from lengthwise.scheduler.vllm_adapter.api.routes import READERS

pytestmark = pytest.mark.vllm


def test_every_route_that_is_read_is_in_the_soak():
    needs_a_library_of_its_own = {"/cohere/v2/chat"}
    asked = {route.path for route in ROUTES} | {"/v1/completions"}
    assert asked == set(READERS) - needs_a_library_of_its_own


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.tenant)
def test_a_route_says_how_long_its_answer_was(server, route):
    body = {"model": "tiny"} | route.body("Name a river.", {"replay_id": "7"})
    answer = post(server, route.path, body, {"x-tenant": route.tenant})
    assert answer.status_code == 200, answer.text
    assert route.tokens(answer.json()) == route.parts * REPLAYED["7"]
    assert len(rows_of(server, route.tenant, route.parts)) == route.parts
