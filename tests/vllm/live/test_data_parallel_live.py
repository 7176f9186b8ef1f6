"""Two engines behind one server: our router steers each request, all engines answer for theirs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = pytest.mark.vllm


def call(url, path, body=None, headers=None):
    """Status, headers and text of a request."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"{url}{path}", data, {"content-type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=180) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.fixture(scope="module")
def pair(tmp_path_factory, predictor_dir):
    from lengthwise.scheduler.serving.settings import AdmissionSettings, ServerSettings
    from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
    from lengthwise.training.bench.engines.servers import free_port

    root = tmp_path_factory.mktemp("pair")
    settings = ServerSettings(
        predictor_dir=str(predictor_dir),
        predictor_version="test/1",
        admission=AdmissionSettings(mode="shed", max_share=1.0, timeout_ms=5000.0),
        request_log=str(root / "log"),
        allow_configure=True,
    )
    with launch_server(
        "tiny",
        settings,
        free_port(),
        ["--enforce-eager", "--max-num-seqs", "4", "--data-parallel-size", "2"],
        log_path=root / "server.log",
        cache_dir=tmp_path_factory.mktemp("cache"),
    ) as handle:
        handle.wait_ready(540)
        yield handle.url, root


def completion(url, tokens, stream=False, headers=None, **body):
    return call(
        url,
        "/v1/completions",
        {"model": "tiny", "prompt": "hello", "max_tokens": tokens, "ignore_eos": True,
         "stream": stream, **body},
        headers,
    )  # fmt: skip


def by_engine(url):
    """Requests that each engine has finished, by the engines' own counters."""
    _, text = call(url, "/metrics")
    found = {"0": 0.0, "1": 0.0}
    for line in text.splitlines():
        if line.startswith("vllm:request_success_total{"):
            engine = line.split('engine="')[1].split('"')[0]
            found[engine] += float(line.rsplit(" ", 1)[1])
    return found


@pytest.mark.timeout(900)
def test_two_engines_one_router(pair):
    url, root = pair

    # the client's own rank is taken away: all of these would else go to engine 1. They are long
    # enough to meet on any machine, since requests that do not meet need not take turns.
    with ThreadPoolExecutor(8) as pool:
        ranked = {"x-data-parallel-rank": "1"}
        done = list(pool.map(lambda k: completion(url, 400, k % 2 == 1, ranked), range(8)))
    assert [status for status, _ in done] == [200] * 8
    assert all("data: [DONE]" in text for _, text in done[1::2])
    assert min(by_engine(url).values()) >= 2

    # several prompts are one request: one engine has them all
    before = by_engine(url)
    status, text = completion(url, 4, prompt=["a", "b", "c"], headers={"x-slo-e2e-ms": "60000"})
    assert status == 200
    assert len(json.loads(text)["choices"]) == 3
    after = by_engine(url)
    assert sorted(after[rank] - before[rank] for rank in after) == [0, 3]

    status, text = call(url, "/lengthwise/status")
    found = json.loads(text)
    assert status == 200
    assert [one["name"] for one in found["instances"]] == ["0", "1"]
    assert {one["versions"]["vllm"] for one in found["instances"]} == {found["versions"]["vllm"]}
    router = found["router"]
    assert router["decisions"].get("score", 0) > 0, router
    assert router["malformed_states"] == router["unknown_rows"] == router["lost_bookings"] == 0
    assert [one["outstanding"] for one in router["instances"]] == [0, 0]
    assert all(one["state_age_s"] < 30 for one in router["instances"])
    assert all(one["about"]["predictor_version"] == "test/1" for one in router["instances"])

    status, _ = call(url, "/lengthwise/configure", {"policy": "edf"})
    assert status == 200
    _, text = call(url, "/lengthwise/status")
    assert [one["policy"] for one in json.loads(text)["instances"]] == ["edf", "edf"]

    _, text = call(url, "/metrics")
    assert 'lengthwise_fleet_outstanding{engine="1"}' in text
    assert "lengthwise_fleet_decisions_total" in text

    # both engines write one log
    deadline_s = time.monotonic() + 20
    rows = []
    while time.monotonic() < deadline_s and len(rows) < 11:
        time.sleep(0.5)
        rows = [
            json.loads(line)
            for path in Path(root / "log").glob("requests-*.jsonl")
            for line in path.read_text().splitlines()
        ]
    assert len(rows) == 11  # a row a sequence
    assert len(list(Path(root / "log").glob("requests-*.jsonl"))) == 2
