"""One real server on the emulated device: lengths, refusals and the step log over HTTP."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from lengthwise.scheduler.serving.server.server_handle import ServerHandle
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import (
    read_emulated_steps,
    summarize_steps,
)
from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.scheduler.vllm_adapter.worker.replay import write_replay_table
from lengthwise.training.bench.engines.servers import free_port

pytestmark = pytest.mark.vllm
LENGTHS = {f"q{i}": 1 + (37 * i) % 90 for i in range(24)}
PROFILE = {
    "name": "made-up",
    "provenance": "made up",
    "step_time": {
        "base_s": 0.02,
        "prefill_step_s": 1e-3,
        "prefill_token_s": 1e-5,
        "decode_seq_s": 1e-5,
        "context_token_s": 1e-8,
    },
    "capacity": {"max_num_seqs": 16, "kv_tokens": 4096, "max_num_batched_tokens": 256},
    "prefix_cache": {"block_tokens": 16},
    "speculation": {"accepted_tokens": 2.0, "draft_tokens": 2},
}


@dataclass(frozen=True)
class Emulated:
    server: ServerHandle
    steps: Path

    def post(self, path: str, **body: object) -> dict:
        data = json.dumps({"model": "tiny", **body}).encode()
        request = urllib.request.Request(
            f"{self.server.url}{path}", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.loads(response.read())


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulated]:
    folder = tmp_path_factory.mktemp("served")
    profile, table, steps = (folder / n for n in ("profile.json", "table.json", "steps.jsonl"))
    profile.write_text(json.dumps(PROFILE))
    write_replay_table(table, LENGTHS)
    settings = make_settings(
        {"profile": str(profile), "lengths": "none", "refit_steps": 0, "replay_table": str(table)}
    )
    with launch_server(
        "tiny",
        settings,
        free_port(),
        log_path=folder / "server.log",
        cache_dir=folder,
        emulate=EmulateOptions(str(profile), step_log=str(steps)),
    ) as server:
        yield Emulated(server.wait_ready(150), steps)


def test_answers_have_their_lengths_and_steps_their_time(emulated: Emulated) -> None:
    def ask(name: str) -> int:
        prompt = "a shared beginning of some words " * 12 + name
        done = emulated.post(
            "/v1/completions",
            prompt=prompt,
            max_tokens=200,
            vllm_xargs={"replay_id": name, "slo_e2e_ms": 4000.0},
        )
        assert done["choices"][0]["finish_reason"] == "stop"
        return int(done["usage"]["completion_tokens"])

    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, LENGTHS)) == list(LENGTHS.values())
    rows = read_emulated_steps(emulated.steps)
    summary = summarize_steps(rows)
    # two tokens a step and sequence, and never less time than the profile says
    assert sum(row.decode_seqs for row in rows) < 0.75 * sum(LENGTHS.values())
    assert min(row.profile_s for row in rows) >= 0.02
    assert summary.step_ratio is not None
    assert summary.step_ratio >= 0.999
    assert asdict(summary)["steps"] == len(rows)


def test_a_chat_reads_as_words(emulated: Emulated) -> None:
    done = emulated.post(
        "/v1/chat/completions", messages=[{"role": "user", "content": "hello"}], max_tokens=12
    )
    choice = done["choices"][0]
    assert choice["finish_reason"] == "length"
    assert len(choice["message"]["content"].split()) == 12


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"logprobs": 2}, "no probabilities to give"),
        ({"prompt_logprobs": 1}, "no probabilities to give"),
        ({"structured_outputs": {"regex": "a+"}}, "follows no grammar"),
        ({"response_format": {"type": "json_object"}}, "follows no grammar"),
    ],
)
def test_what_a_device_cannot_give_is_refused(emulated: Emulated, body: dict, words: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        emulated.post("/v1/completions", prompt="hello", max_tokens=4, **body)
    assert refused.value.code == 400
    assert words in refused.value.read().decode()
    # and the engine lives
    assert emulated.post("/v1/completions", prompt="hello", max_tokens=4)["choices"]
