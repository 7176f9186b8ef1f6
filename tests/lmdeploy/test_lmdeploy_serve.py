"""``lengthwise serve --engine lmdeploy``: the same server, on the second engine."""

import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_environment import VARIABLE
from lengthwise.scheduler.lmdeploy_adapter.lmdeploy_foreground import (
    device_of,
    lmdeploy_address,
    serve_lmdeploy,
)
from lengthwise.scheduler.serving.settings import ServerSettings
from lengthwise.training.bench.engines.servers import free_port
from lengthwise.training.cli.app import app

# -- without LMDeploy -------------------------------------------------------------------------


def test_on_a_cpu_it_is_told_what_it_would_ask_a_gpu():
    device, words = device_of(["--device", "cpu", "--max-batch-size", "4"], on_cpu=False)
    assert device == "cpu"
    assert "--device" not in words
    assert words.count("--max-batch-size") == 1
    assert {"--eager-mode", "--num-gpu-blocks", "pytorch"} <= set(words)


def test_on_a_gpu_all_is_its_own():
    asked = ["--backend", "turbomind", "--tp", "2"]
    assert device_of(asked, on_cpu=False) == ("gpu", asked)
    assert device_of(["--device=ascend"], on_cpu=False) == ("ascend", ["--device=ascend"])


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["--backend", "onnx"], "--backend must be one of pytorch, turbomind, got 'onnx'"),
        (["--device", "cpu", "--backend", "turbomind"], "TurboMind has no CPU engine"),
        (["--max-num-seqs", "4"], "--max-num-seqs is vLLM's, LMDeploy's is --max-batch-size"),
        (["--port=81"], "--port is vLLM's, LMDeploy's is --server-port"),
    ],
)
def test_what_it_cannot_be_is_refused(words, rule):
    with pytest.raises(InputError, match=rule):
        device_of(words, on_cpu=False)


@pytest.mark.parametrize("said", ["x", "-1", "inf"])
def test_how_long_it_may_finish_is_a_number_of_seconds(said, tmp_path):
    rule = f"--shutdown-timeout must be a number of seconds, got '{said}'"
    with pytest.raises(InputError, match=rule):
        serve_lmdeploy(
            tmp_path / "python", "m", ServerSettings(), [f"--shutdown-timeout={said}"],
            cache_dir=tmp_path,
        )  # fmt: skip


def test_where_it_listens():
    assert lmdeploy_address([]).shown == "0.0.0.0:23333"
    asked = ["--server-name", "127.0.0.1", "--server-port=81"]
    assert lmdeploy_address(asked).shown == "127.0.0.1:81"
    with pytest.raises(InputError, match="--server-port must be 0 to 65535, got 'x'"):
        lmdeploy_address(["--server-port", "x"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--engine", "triton"], "--engine must be one of vllm, lmdeploy, got 'triton'"),
        (["--engine", "lmdeploy", "--instances", "2"], "are vLLM's"),
        (["--engine", "lmdeploy", "--emulate", "tiny-cpu"], "is vLLM's device"),
        (["--engine", "lmdeploy"], "no LMDeploy environment in"),
    ],
)
def test_serve_says_what_it_cannot_do_there(words, said, tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nothing"))
    done = CliRunner().invoke(app, ["serve", "tiny", *words])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


# -- with it ----------------------------------------------------------------------------------

needs_lmdeploy = pytest.mark.lmdeploy


class Server:
    """The command in a folder of its own."""

    def __init__(self, python, folder):
        self.folder, self.port = folder, free_port()
        variables = {"LENGTHWISE_HOME": str(folder), VARIABLE: str(python.parents[1])}
        words = ["serve", "tiny", "--engine", "lmdeploy", "--server-port", str(self.port)]
        words += ["--server-name", "127.0.0.1", "--allow-configure", "--log-prompts"]
        words += ["--request-log", str(folder / "log"), "--max-batch-size", "4", "--poll-s", "1"]
        self.output = (folder / "output").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "lengthwise", *words],
            env=os.environ | variables, stdout=self.output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def wait_ready(self):
        deadline_s = time.monotonic() + 300.0
        while time.monotonic() < deadline_s and self.process.poll() is None:
            try:
                self.get("/health")
            except OSError:
                time.sleep(0.5)
            else:
                return self
        raise AssertionError((self.folder / "output").read_text()[-3000:])

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return answer.read().decode()

    def post(self, path, body, **headers):
        """Status and the answer's document."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}",
            data=json.dumps(body).encode(),
            headers={"content-type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    @property
    def status(self):
        return json.loads(self.get("/lengthwise/status"))

    def logged(self, slo_class):
        """The request log's rows of a class."""
        rows = read_request_log(self.folder / "log")
        return rows[rows["slo_class"] == slo_class]

    def outcomes(self, slo_class):
        return self.status["outcomes"].get(slo_class, {})


@pytest.fixture(scope="module")
def server(lmdeploy_python, tmp_path_factory):
    server = Server(lmdeploy_python, tmp_path_factory.mktemp("lmdeploy-serve"))
    try:
        yield server.wait_ready()
    finally:
        server.process.kill()
        server.process.wait()
        server.output.close()


def until(condition, within_s=30.0):
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.1)
    return found


@needs_lmdeploy
@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("/v1/completions", {"prompt": "say it", "max_tokens": 6}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 6}),
        ("/v1/responses", {"input": "say it", "max_output_tokens": 6}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": 6}),
        ("/generate", {"prompt": "say it", "max_tokens": 6}),
    ],
)
def test_every_generating_route_is_read_and_booked(server, route, body):
    name = route.strip("/").replace("/", "-")
    slo = {"x-slo-class": name, "x-slo-e2e-ms": "60000", "anthropic-version": "2023-06-01"}
    status, answer = server.post(route, {"model": "tiny", **body}, **slo)
    assert status == 200, answer
    assert server.outcomes(name) == {"length": 1, "met": 1}


@needs_lmdeploy
def test_a_body_says_its_objectives_and_a_wrong_one_is_refused(server):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 4}
    told = {"vllm_xargs": {"slo_class": "told", "slo_ttft_ms": 30000}}
    assert server.post("/v1/completions", body | told)[0] == 200
    assert server.outcomes("told") == {"length": 1, "met": 1}
    status, answer = server.post("/v1/completions", body | {"vllm_xargs": {"slo_ttft_ms": "soon"}})
    assert status == 400
    assert "slo_ttft_ms must be a number of milliseconds, got 'soon'" in json.dumps(answer)


@needs_lmdeploy
def test_token_ids_have_a_route_and_completions_say_which(server):
    ids = {"model": "tiny", "max_tokens": 4}
    status, answer = server.post("/v1/completions", ids | {"prompt": [3, 4, 5]})
    assert status == 400
    assert "/generate" in json.dumps(answer)
    slo = {"x-slo-class": "ids"}
    assert server.post("/generate", ids | {"input_ids": [3, 4, 5]}, **slo)[0] == 200
    assert server.outcomes("ids")["length"] == 1


@needs_lmdeploy
def test_a_prompt_beyond_the_session_is_told(server):
    body = {"model": "tiny", "prompt": "word " * 40_000, "max_tokens": 4}
    status, answer = server.post("/v1/completions", body)
    assert status == 400, answer
    assert server.post("/v1/completions", body | {"prompt": "a"})[0] == 200


@needs_lmdeploy
def test_more_than_slots_are_planned_and_all_are_logged(server):
    def one(at):
        body = {"model": "tiny", "prompt": f"number {at}", "max_tokens": 12 + 12 * (at % 4)}
        told = {"vllm_xargs": {"slo_class": "many", "slo_e2e_ms": 60000}}
        return server.post("/v1/completions", body | told)[0]

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        assert set(pool.map(one, range(40))) == {200}
    status = server.status
    assert status["outcomes"]["many"] == {"length": 40, "met": 40}
    assert status["plan"]["count"] >= 1
    assert status["plan"]["fallbacks"] == {}
    assert status["queue"]["waiting"] == status["queue"]["running"] == status["tracked"] == 0
    assert status["step_time"]["steps"] > 40
    metrics = server.get("/metrics")
    assert 'lengthwise_requests_total{slo_class="many",status="length"} 40.0' in metrics
    assert "lmdeploy:" in metrics
    until(lambda: len(server.logged("many")) == 40)
    rows = server.logged("many")
    assert sorted(rows["output_tokens"]) == sorted(12 + 12 * (at % 4) for at in range(40))
    assert set(rows["prompt"]) == {f"number {at}" for at in range(40)}
    assert rows["predictor"].notna().all()


@needs_lmdeploy
def test_who_leaves_gives_the_handle_back(server):
    body = {"model": "tiny", "prompt": "on and on", "max_tokens": 3000, "ignore_eos": True,
            "stream": True, "vllm_xargs": {"slo_class": "leaver"}}  # fmt: skip
    raw = json.dumps(body).encode()
    for _ in range(6):  # more than there are handles
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(raw), raw)
            )
            connection.recv(200)
    until(lambda: server.outcomes("leaver").get("aborted") == 6)
    until(lambda: server.status["queue"]["running"] == 0)
    assert (
        server.post("/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 2})[0] == 200
    )


@needs_lmdeploy
def test_who_hangs_up_on_a_whole_answer_is_noticed(server):
    body = {"model": "tiny", "prompt": "on and on", "max_tokens": 3000, "ignore_eos": True,
            "vllm_xargs": {"slo_class": "hung-up"}}  # fmt: skip
    raw = json.dumps(body).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(raw), raw)
        )
        until(lambda: server.status["queue"]["running"] == 1)
    until(lambda: server.outcomes("hung-up").get("aborted") == 1, 15.0)


@needs_lmdeploy
def test_a_clients_stop_word_teaches_no_length(server):
    body = {"model": "tiny", "prompt": "a", "max_tokens": 40, "temperature": 0.0}
    _, answer = server.post("/v1/completions", body)
    word = answer["choices"][0]["text"].split()[2]
    told = {"stop": [f" {word}"], "vllm_xargs": {"slo_class": "stops"}}
    _, answer = server.post("/v1/completions", body | told)
    ended = server.outcomes("stops")
    assert ended.keys() & {"stopped", "length"}
    assert ("stopped" in ended) == (answer["choices"][0]["finish_reason"] == "stop")


@needs_lmdeploy
def test_who_leaves_the_line_leaves_nothing_behind(server):
    body = {"model": "tiny", "prompt": "on", "max_tokens": 60, "stream": True,
            "vllm_xargs": {"slo_class": "crowd"}}  # fmt: skip
    raw = json.dumps(body).encode()

    def one(at):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(raw), raw)
            )
            if at % 2:
                time.sleep(0.05 * (at % 17))
                return None
            answer = b""
            while part := connection.recv(65536):
                answer += part
            return b"[DONE]" in answer

    with concurrent.futures.ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(one, range(60)))
    assert all(answers[0::2])
    until(
        lambda: sum(server.outcomes("crowd").get(name, 0) for name in ("length", "aborted")) == 60
    )
    status = server.status
    assert status["queue"]["running"] == status["queue"]["waiting"] == status["tracked"] == 0
    assert server.post("/v1/completions", body | {"stream": False})[0] == 200


@needs_lmdeploy
def test_samples_of_a_chat_are_one_request(server):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 5,
            "n": 3, "vllm_xargs": {"slo_class": "samples", "slo_ttft_ms": 60000}}  # fmt: skip
    status, answer = server.post("/v1/chat/completions", body)
    assert status == 200
    assert len(answer["choices"]) == 3
    assert server.outcomes("samples") == {"length": 1, "met": 1}


@needs_lmdeploy
def test_whatever_else_takes_a_handle_is_served_and_booked(server):
    before = server.status["tracked"]
    status, answer = server.post("/get_ppl", {"model": "tiny", "input": [3, 4, 5]})
    assert status in (200, 400), answer
    assert server.status["tracked"] == before == 0


@needs_lmdeploy
def test_policy_and_predictor_are_switched_while_it_serves(server):
    status, answer = server.post("/lengthwise/configure", {"policy": "feasible-edf"})
    assert (status, answer["policy"]) == (200, "feasible-edf")
    status, answer = server.post(
        "/lengthwise/configure", {"policy": "sa", "policy_params": {"parts": ["slots"]}}
    )
    assert status == 400
    assert "sa may decide order, limits on this engine" in answer["error"]["message"]
    assert server.post("/lengthwise/configure", {"policy": "sa"})[0] == 200
    status, answer = server.post("/lengthwise/reload", {})
    assert status == 200
    assert answer["parts"]["predictor"]["outcome"] == "unchanged"


@needs_lmdeploy
def test_it_ends_with_all_it_started(server):
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert len(children) >= 2
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]
    assert not list((server.folder / ".lengthwise" / "run").glob("*"))
