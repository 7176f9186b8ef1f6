"""Two real engines under Ray Serve: every kind of route, objectives, and one of them killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from pathlib import Path

import pytest

pytest.importorskip("ray.serve", reason="needs lengthwise[fleet]", exc_type=ImportError)

from lengthwise.training.bench.engines.servers import free_port

pytestmark = pytest.mark.timeout(1200)

READY_S = 600


class Fleet:
    """A running `lengthwise serve tiny --instances 2`."""

    def __init__(self, process, port):
        self.process, self.url = process, f"http://127.0.0.1:{port}"

    def call(self, path, body=None, headers=None, timeout_s=180):
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json", **(headers or {})}
        request = urllib.request.Request(f"{self.url}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def complete(self, tokens=16, stream=False, headers=None, **body):
        body = {"model": "tiny", "prompt": "hello", "max_tokens": tokens, "ignore_eos": True,
                "stream": stream, **body}  # fmt: skip
        return self.call("/v1/completions", body, headers)

    def status(self):
        return json.loads(self.call("/lengthwise/status")[1])

    def replicas(self):
        """Process ids of the replicas, among all that have come of our server."""
        parents, names = {}, {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                try:
                    stat = (entry / "stat").read_text()
                    names[int(entry.name)] = (entry / "cmdline").read_text()
                    parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
                except OSError:
                    continue
        found = []
        for pid, name in names.items():
            if name.startswith("ray::") and "LengthwiseServer" in name:
                above = pid
                while above not in (0, 1, self.process.pid):
                    above = parents.get(above, 0)
                found += [pid] if above == self.process.pid else []
        return sorted(found)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    port = free_port()
    command = [
        sys.executable, "-m", "lengthwise", "serve", "tiny", "--instances", "2",
        "--predictor", "none", "--allow-configure", "--request-log", str(home / "log"),
        "--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--max-num-seqs", "4",
    ]  # fmt: skip
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=home,
            env=os.environ | {"LENGTHWISE_HOME": str(home)}, start_new_session=True,
        )  # fmt: skip
    found = Fleet(process, port)
    try:
        deadline_s = time.monotonic() + READY_S
        while True:
            try:
                ready = found.call("/health", timeout_s=5)[0] == 200
                if ready and len(found.status()["instances"]) == 2:  # one may answer for both
                    break
            except OSError:
                pass
            text = (home / "log.txt").read_text(errors="replace")
            assert process.poll() is None, text[-4000:]
            assert time.monotonic() < deadline_s, text[-4000:]
            time.sleep(1)
        yield found
    finally:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.vllm
def test_every_kind_of_route_answers_as_a_single_server_does(fleet):
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
    for path, body in (
        ("/v1/models", None),
        ("/version", None),
        ("/tokenize", {"model": "tiny", "prompt": "hello"}),
        ("/v1/chat/completions", chat),
        ("/v1/messages", chat),
        ("/v1/responses", {"model": "tiny", "input": "hi", "max_output_tokens": 8}),
    ):
        status, text = fleet.call(path, body)
        assert status == 200, (path, text)
    status, text = fleet.call("/v1/chat/completions", {**chat, "stream": True})
    assert status == 200
    assert text.rstrip().endswith("data: [DONE]")
    assert fleet.call("/v1/chat/completions", {**chat, "model": "other"})[0] == 404
    assert fleet.call("/v1/chat/completions", chat, {"x-slo-ttft-ms": "soon"})[0] == 400
    status, text = fleet.complete(prompt=["a", "b", "c"])
    assert status == 200
    assert len(json.loads(text)["choices"]) == 3


@pytest.mark.vllm
def test_both_instances_serve_and_both_kinds_of_objectives_arrive(fleet):
    with ThreadPoolExecutor(8) as pool:
        by_header = {"x-slo-e2e-ms": "60000"}
        jobs = [pool.submit(fleet.complete, 16, k % 2 == 1, by_header) for k in range(8)]
        xargs = {"slo_e2e_ms": 60000}
        jobs += [pool.submit(fleet.complete, 16, vllm_xargs=xargs) for _ in range(8)]
        assert [job.result()[0] for job in jobs] == [200] * 16
    found = fleet.status()
    assert len(found["instances"]) == 2
    judged = [one["outcomes"].get("default", {}) for one in found["instances"]]
    assert all(judged), judged
    router = found["router"]
    assert router["malformed_states"] == 0
    assert router["errors"] == 0
    assert sum(router["decisions"].values()) >= 16
    assert [one["outstanding"] for one in router["instances"]] == [0, 0]
    _, page = fleet.call("/metrics")
    for one in found["instances"]:
        assert f'engine="{one["name"]}"' in page
    assert 'lengthwise_fleet_decisions_total{rung="' in page


@pytest.mark.vllm
def test_configure_reaches_every_instance(fleet):
    assert fleet.call("/lengthwise/configure", {"policy": "edf"})[0] == 200
    assert [one["policy"] for one in fleet.status()["instances"]] == ["edf", "edf"]


@pytest.mark.chaos
def test_a_killed_instance_costs_only_what_it_had_begun_to_stream(fleet):
    """What had not begun to answer is sent again; what had ends as stock's would."""
    before = fleet.replicas()
    assert len(before) == 2

    def one(k):
        streams = k % 2 == 1
        try:
            status, text = fleet.complete(160, streams)
        except (OSError, HTTPException) as error:
            return streams, type(error).__name__
        complete = status == 200 and ("[DONE]" in text if streams else '"choices"' in text)
        return streams, "whole" if complete else "cut"

    with ThreadPoolExecutor(16) as pool:
        jobs = [pool.submit(one, k) for k in range(16)]
        time.sleep(1.0)
        os.kill(before[0], signal.SIGKILL)
        done = Counter(job.result() for job in jobs)
    assert done[False, "whole"] == 8, done
    assert done[True, "whole"] >= 1, done
    assert fleet.complete(8)[0] == 200

    deadline_s = time.monotonic() + READY_S  # Ray puts another in its place
    policies = []
    while policies != ["edf", "edf"]:  # configured as the one that was there
        assert time.monotonic() < deadline_s, policies
        time.sleep(2)
        policies = [one.get("policy") for one in fleet.status()["instances"]]
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: fleet.complete(8)[0], range(16))) == {200}
