"""The streaming client against a server of known timing."""

from __future__ import annotations

import asyncio
import json

import pytest
from bench_stub import Stub, running

from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.training.bench.engines.client import (
    Call,
    completion_body,
    drive_closed,
    parse_queue_metrics,
    replay,
    served_model,
    wait_idle,
)
from lengthwise.training.bench.engines.servers import (
    BenchServers,
    ReplayIds,
    filler_ids,
    prompt_ids,
)


def request(output_tokens: int = 5, prompt: str | None = "hello", **slo: float) -> WorkloadRequest:
    return WorkloadRequest(0.0, 4, output_tokens, Slo(**slo, slo_class="chat"), prompt)


def call(key: int, arrival_s: float = 0.0) -> Call:
    return Call(arrival_s, completion_body(request(), model="m", replay_id=key, max_tokens=99))


def test_times_and_tokens_are_those_of_the_server():
    with running(Stub(ttft_s=0.15, itl_s=0.02, lengths={1: 11, 2: 1})) as stub:
        log = asyncio.run(replay(stub.url, [call(1), call(2, 0.1)], queue_period_s=None))
    long, short = log.replies
    assert (long.output_tokens, short.output_tokens) == (11, 1)
    assert long.prompt_tokens == 7
    # never early; how late depends on the machine the test runs on
    assert 0.14 <= long.ttft_s < 5.0
    assert 0.15 <= long.e2e_s - long.ttft_s < 5.0
    assert short.e2e_s == short.ttft_s
    assert 0.1 <= short.send_s < 5.0


def test_open_loop_does_not_wait_for_answers():
    stub = Stub(ttft_s=0.8, lengths={1: 1}, slots=1)
    with running(stub):
        calls = [call(1, 0.02 * i) for i in range(5)]
        log = asyncio.run(replay(stub.url, calls, queue_period_s=0.1))
    # a closed loop would send the fifth after four answers, 3.2 s
    assert log.replies[-1].send_s < 2.4
    # one slot: the fifth waits for the four before it, and that wait counts in its TTFT
    assert log.replies[-1].send_s + log.replies[-1].ttft_s > 3.8
    assert max(s.waiting for s in log.queue) >= 2
    assert max(s.running for s in log.queue) == 1


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("400", "HTTP 400"),
        ("break", ""),
        ("error", "engine died"),
        ("no usage", "usage record"),
    ],
)
def test_a_failed_request_is_lost_and_the_others_are_not(fault, says):
    with running(Stub(lengths={1: 3, 2: 3}, fail_ids={1: fault})) as stub:
        log = asyncio.run(replay(stub.url, [call(1), call(2)], queue_period_s=None))
    assert log.replies[0].error is not None
    assert says in log.replies[0].error
    assert log.replies[0].e2e_s is None
    assert log.replies[1].error is None


def test_a_request_that_takes_too_long_is_lost():
    with running(Stub(ttft_s=1.0, lengths={1: 2})) as stub:
        log = asyncio.run(replay(stub.url, [call(1)], timeout_s=0.3, queue_period_s=None))
    assert log.replies[0].error == "no end after 0.3 s"


def test_a_dead_server_loses_every_request():
    log = asyncio.run(replay("http://127.0.0.1:9", [call(1)], queue_period_s=0.05))
    assert log.replies[0].error
    assert log.queue == ()


def test_the_true_length_is_in_no_body_but_the_oracles():
    def body(n: int, **kwargs: bool) -> dict:
        made = completion_body(
            request(n, e2e_s=30.0),
            model="m",
            replay_id=5,
            max_tokens=4096,
            cache_salt="a",
            **kwargs,
        )
        return json.loads(made)

    assert body(17) == body(911)
    assert body(17, tell_length=True)["vllm_xargs"]["osl"] == 17
    assert "osl" not in body(17)["vllm_xargs"]
    assert body(17)["vllm_xargs"]["slo_e2e_ms"] == pytest.approx(30_000)
    assert body(17)["temperature"] == 0


def test_a_request_without_text_is_sent_as_token_ids():
    made = completion_body(
        request(prompt=None), model="m", replay_id=5, max_tokens=9, prompt_ids=[101, 102]
    )
    assert json.loads(made)["prompt"] == [101, 102]


def test_closed_loop_keeps_to_its_concurrency():
    stub = Stub(ttft_s=0.1, lengths={1: 1})
    with running(stub):
        replies = asyncio.run(drive_closed(stub.url, [call(1).body] * 6, concurrency=2))
    assert [r.error for r in replies] == [None] * 6
    # three rounds of two: the last pair is sent after two answers' time
    assert max(r.send_s for r in replies) > 0.19


def test_wait_idle_and_model_name():
    with running(Stub()) as stub:
        asyncio.run(wait_idle(stub.url, timeout_s=2))
        assert asyncio.run(served_model(stub.url)) == ("stub", 2048)
        stub.waiting = 1
        with pytest.raises(TimeoutError):
            asyncio.run(wait_idle(stub.url, timeout_s=0.3, poll_s=0.05))


def test_queue_metrics_take_only_the_two_gauges():
    text = 'vllm:num_requests_waiting{e="0"} 3.0\nvllm:num_requests_waiting{e="1"} 2.0\n'
    text += 'vllm:num_requests_waiting_by_reason{e="0"} 9.0\nvllm:num_requests_running 4.0\n'
    assert parse_queue_metrics(text) == {"waiting": 5, "running": 4}


def test_requests_without_text_share_their_beginning_in_ids():
    one, other = (
        WorkloadRequest(0.0, tokens, 3, Slo(), prefix="a", prefix_tokens=20) for tokens in (50, 20)
    )
    stranger = WorkloadRequest(0.0, 50, 3, Slo(), prefix="b", prefix_tokens=20)
    alone = WorkloadRequest(0.0, 50, 3, Slo())
    ids = {name: prompt_ids(r, i) for i, (name, r) in enumerate(
        {"one": one, "other": other, "stranger": stranger, "alone": alone}.items()
    )}  # fmt: skip
    assert [len(x) for x in ids.values()] == [50, 20, 50, 50]
    assert ids["one"][:20] == ids["other"]
    assert ids["one"][:20] != ids["stranger"][:20]
    assert ids["one"] != prompt_ids(one, 9)
    assert ids["alone"] == filler_ids(50, 3)


def test_a_long_prompt_asks_for_what_it_leaves_and_all_others_for_the_same():
    replay = ReplayIds.random(600, seed=1)
    servers = BenchServers(None, None, "stub", 512, replay, (), context_tokens=1024)

    def asked(prompt_tokens, output_tokens):
        request = WorkloadRequest(0.0, prompt_tokens, output_tokens, Slo())
        return json.loads(servers.calls([request], salt="s")[0].body)["max_tokens"]

    assert {asked(prompt, answer) for prompt in (5, 100) for answer in (3, 500)} == {512}
    assert asked(600, 3) == 1024 - 690 - 64
    assert asked(600, 400) == 400  # its answer may be of its length all the same
    assert asked(5_000, 3) == 3
