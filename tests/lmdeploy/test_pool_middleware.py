"""What stands in front of LMDeploy's server, and its requests as rows; no LMDeploy needed."""

import asyncio
import json

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.scheduler.lmdeploy_adapter.live_requests import LiveRequests
from lengthwise.scheduler.lmdeploy_adapter.pool_middleware import HINTS, PoolMiddleware
from lengthwise.scheduler.lmdeploy_adapter.pool_order import PoolOrder, answered, pool_policy_of
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.engines.lmdeploy_servers import calls_of

SEEN = {}


async def engine(scope, receive, send):
    """Stands for LMDeploy's app: notes the body, its length and the hints of its task."""
    message = await receive()
    SEEN["body"] = json.loads(message["body"])
    SEEN["length"] = int(dict(scope["headers"])[b"content-length"])
    SEEN["bytes"] = len(message["body"])
    SEEN["hints"] = HINTS.get(None)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


def ask(path, body, configure=lambda document: document, chunk=7):
    app = PoolMiddleware(engine, configure, lambda: {"policy": "fcfs"})
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    sent = []

    async def receive():
        return {"body": parts.pop(0), "more_body": bool(parts)} if parts else {}

    async def send(message):
        sent.append(message)

    headers = [(b"content-length", str(len(body)).encode()), (b"x-other", b"1")]
    scope = {"type": "http", "path": path, "headers": headers}
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], json.loads(sent[1]["body"])


def test_the_forced_length_reaches_the_engine_and_not_the_planner():
    hints = {"quantiles": [1.0, 2.0], "slo": {"e2e_s": 3.0}}
    body = {"prompt": "a", "max_tokens": 4096, "lengthwise": hints | {"replay_tokens": 77}}
    status, _ = ask("/v1/completions", json.dumps(body).encode())
    assert status == 200
    assert SEEN["body"] == {"prompt": "a", "max_tokens": 77, "ignore_eos": True}
    assert SEEN["length"] == SEEN["bytes"]
    assert SEEN["hints"] == hints


def test_a_body_without_hints_goes_through_as_it_is():
    ask("/v1/completions", b'{"prompt": "a", "max_tokens": 5}')
    assert SEEN["body"] == {"prompt": "a", "max_tokens": 5}
    assert SEEN["hints"] == {}


@pytest.mark.parametrize(
    ("body", "said"),
    [(b'{"prompt": [1, 2]}', "/generate"), (b"{half", "no JSON"), (b"[1]", "no JSON")],
)
def test_what_it_cannot_read_is_a_line(body, said):
    status, answer = ask("/v1/completions", body)
    assert status == 400
    assert said in answer["error"]


def test_its_own_routes_answer():
    assert ask("/lengthwise/status", b"") == (200, {"policy": "fcfs"})
    assert ask("/lengthwise/configure", b'{"policy": "sa"}') == (200, {"policy": "sa"})

    def refuse(document):
        raise ValueError("the pool is in use")

    assert ask("/lengthwise/configure", b"{}", refuse) == (400, {"error": "the pool is in use"})


def test_bodies_are_the_same_for_every_server_and_need_text():
    slo = Slo(ttft_s=2.0, slo_class="chat")
    request = WorkloadRequest(0.5, 3, 40, slo, prompt="say it")
    (call,) = calls_of([request], np.array([[10.0, 20.0]]), 4096)
    body = json.loads(call.body)
    assert body["lengthwise"] == {
        "quantiles": [10.0, 20.0], "slo": {"ttft_s": 2.0}, "replay_tokens": 40,
    }  # fmt: skip
    assert body["max_tokens"] == 4096
    with pytest.raises(InputError, match="request 0 has no text"):
        calls_of([WorkloadRequest(0.5, 3, 40, slo)], np.array([[10.0, 20.0]]), 4096)


def test_rows_come_one_by_one_and_nobody_knows_their_length():
    live = LiveRequests(np.array([0.1, 0.9]))
    first = live.add(1.0, 50, np.array([10.0, 90.0]), ttft_s=2.0)
    second = live.add(2.0, 60, np.array([5.0, 8.0]), e2e_s=9.0)
    answered(live, first, 3, 4.0)
    rows = live.rows(np.array([first, second]), None, True)
    assert rows.generated_tokens.tolist() == [3.0, 0.0]
    assert rows.prefill_left_tokens.tolist() == [0.0, 60.0]
    assert rows.ttft_s.tolist() == [2.0, np.inf]
    assert rows.first_token_s[0] == 4.0
    assert np.isnan(live.times[first, 2])
    live.ended(first, 6.0)
    assert live.times[first, 2] == 6.0
    with pytest.raises(ValueError, match="must be 2 tokens, got 1"):
        live.add(3.0, 5, np.array([1.0]))


def test_a_policy_plans_on_a_running_servers_rows():
    live = LiveRequests(np.array([0.1, 0.5, 0.9]))
    profile = load_profile("tiny-cpu")
    order = PoolOrder(live, pool_policy_of("sjf"), profile, paced=True)
    assert profile.capacity == Capacity(32, 524288, 2048)
    for arrival_s, tokens in ((0.0, 300.0), (0.1, 20.0), (0.2, 100.0)):
        row = live.add(arrival_s, 10, np.full(3, tokens))
        order.arrive(row, arrival_s)
    assert order.admit(0.3, 1) == [1]
    answered(live, 1, 20, 0.5)
    live.ended(1, 0.5)
    order.leave(1)
    assert order.admit(1.0, 1) == [2]
