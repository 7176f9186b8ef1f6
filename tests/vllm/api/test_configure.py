"""Our own routes `status` and `configure`: both processes answer, or neither changes."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from echo_client import Client, WordPredictor

from lengthwise.scheduler.policies.make import make_policy


def test_status_joins_engine_and_api():
    client = Client(WordPredictor(), predictor_version="v7")
    document = client.call("GET", "/lengthwise/status").json()
    assert document["policy"] == "sa"
    assert document["predictor_version"] == "v7"
    assert document["api"]["levels"] == 12
    client.core.answer = RuntimeError("dead")
    assert client.call("GET", "/lengthwise/status").status_code == 503


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_whatever_an_engine_counts_the_status_is_json(number):
    """As with a setting ``max_wait_s`` of Infinity."""
    client = Client()
    client.core.answer = {"queue": {"max_wait_s": number, "rows": [1.5, number]}, "policy": "sa"}
    raw = client.call("GET", "/lengthwise/status").content

    def refused(name):
        raise AssertionError(name)

    status = json.loads(raw, parse_constant=refused)
    assert status["queue"] == {"max_wait_s": None, "rows": [1.5, None]}


def test_a_large_configure_body_is_refused_unread():
    client = Client(allow_configure=True)
    for size, status in ((16_000, 200), (16_400, 413), (3_000_000, 413)):
        raw = b'{"lengths": "none"' + b" " * (size - 19) + b"}"
        answer = client.call("POST", "/lengthwise/configure", content=raw)
        assert answer.status_code == status, answer.text
    assert (
        Client(allow_configure=True, max_body_bytes=10)
        .post("/lengthwise/configure", {"lengths": "none"})
        .status_code
        == 413
    )


def test_a_long_name_is_not_given_back_whole():
    with pytest.raises(ValueError, match="unknown policy") as error:
        make_policy("x" * 10_000)
    assert len(str(error.value)) < 300


def test_configure_needs_permission():
    answer = Client().post("/lengthwise/configure", {"policy": "edf"})
    assert answer.status_code == 403


def test_configure_switches_both_processes():
    client = Client(WordPredictor(), allow_configure=True)
    assert client.post("/lengthwise/configure", {"lengths": "none"}).status_code == 200
    method, sent = client.core.asked[-1]
    assert method == "lengthwise_configure"
    assert sent["lengths"] == "none"
    assert "pred_quantiles" not in client.xargs({"prompt": "hi"})


def test_a_policys_parameters_reach_the_engine():
    client = Client(allow_configure=True)
    params = {"tokens_price": 2.0, "parts": ["order"]}
    body = {"policy": "sa", "policy_params": params}
    assert client.post("/lengthwise/configure", body).status_code == 200
    assert client.core.asked[-1][1]["policy_params"] == params


@pytest.mark.parametrize(
    "body",
    [{"lengths": "guess"}, {"nonsense": 1}, [], {"policy": 1}, {"reset_stats": "x"},
     {"reset_stats": "yes"}, {"reset_stats": 1}, {"log_steps": 0}, {"policy": "\ud800"},
     {"\ud800": 1}, {"policy_params": {}}, {"policy": "sa", "policy_params": {"horizon": -1}},
     {"policy": "sa", "policy_params": {"\ud800": 1}}, {"policy": "sa", "policy_params": [1]},
     {"policy": "sa", "policy_params": {"head": 2**70}},
     {"policy": "sa", "policy_params": {"parts": ["\ud800"]}},
     {"policy": "edf", "policy_params": {"horizon": 2}}],
)  # fmt: skip
def test_a_wrong_configure_body_is_a_400_and_changes_nothing(body):
    client = Client(WordPredictor(), allow_configure=True)
    raw = json.dumps(body).encode()
    assert client.call("POST", "/lengthwise/configure", content=raw).status_code == 400
    assert client.core.asked == []


def test_a_configure_body_that_is_no_object_is_named():
    answer = Client(allow_configure=True).post("/lengthwise/configure", [1])
    assert answer.json()["error"]["message"] == "the body must be a JSON object, got [1]"


def test_a_key_that_configure_does_not_know_is_named():
    client = Client(WordPredictor(), allow_configure=True)
    answer = client.post("/lengthwise/configure", {"polic": "sa"}).json()
    assert answer["error"]["message"] == "polic: no such key, got 'sa'"


@pytest.mark.parametrize("key", ["x" * 15_000, "a\nb", "\x1b[2J"])
def test_a_key_that_is_no_name_is_told_on_one_short_line(key):
    answer = Client(allow_configure=True).post("/lengthwise/configure", {key: 1})
    told = answer.json()["error"]["message"]
    assert answer.status_code == 400
    assert told.isprintable()
    assert len(told) < 100
    assert told.endswith(": no such key, got 1")


def test_what_the_engine_refuses_is_a_400_and_changes_nothing():
    client = Client(WordPredictor(), allow_configure=True)
    client.core.answer = {"error": "unknown policy 'magic'"}
    answer = client.post("/lengthwise/configure", {"policy": "magic", "lengths": "none"})
    assert answer.status_code == 400
    assert "magic" in answer.json()["error"]["message"]
    assert client.service.lengths == "learned"


def test_configure_asks_for_vllms_key_where_there_is_one():
    client = Client(allow_configure=True)
    client.app.state.args = SimpleNamespace(api_key=["secret"])
    path, body = "/lengthwise/configure", {"reset_stats": True}
    assert client.post(path, body).status_code == 401
    assert client.post(path, body, {"authorization": "Bearer wrong"}).status_code == 401
    assert client.post(path, body, {"authorization": "Bearer secret"}).status_code == 200
