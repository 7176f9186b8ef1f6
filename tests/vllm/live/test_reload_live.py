"""Hot reload on the real engine while requests run."""

from __future__ import annotations

import shutil
import threading
import time

import httpx
import pytest
from test_engine import COMPLETIONS, LIMIT_S, completion, forced, logged, status, together, usage

from lengthwise.scheduler.serving.live import read_live, write_live

pytestmark = pytest.mark.vllm


@pytest.fixture
def live(server):
    """The live file's state, put back and in force again afterwards."""
    state = read_live(server.live_file)
    yield state
    write_live(server.live_file, state)
    assert reload(server).status_code == 200
    assert status(server)["predictor_version"] == "test/1"


def reload(server):
    return httpx.post(f"{server.url}/lengthwise/reload", timeout=LIMIT_S)


def changed(state, **parts):
    return type(state).model_validate(state.model_dump() | parts)


def test_a_new_version_takes_over_under_load(server, live, predictor_dir, tmp_path):
    newer = tmp_path / "newer"
    shutil.copytree(predictor_dir, newer)
    shadow = {"directory": str(predictor_dir), "version": "test/1"}
    following = changed(
        live,
        predictor={"directory": str(newer), "version": "test/2"},
        shadow=shadow,
        slo_table=live.slo_table | {"vip": {"e2e_ms": 50000.0}},
        policy="feasible-edf",
    )
    answers = []

    def drive():
        for wave in range(4):
            prompts = [f"Wave {wave}, request {i}." for i in range(24)]
            calls = [
                (COMPLETIONS, completion(i, prompt=prompt, xargs={"slo_class": "chat"}))
                for i, prompt in enumerate(prompts)
            ]
            answers.extend(together(server, calls))

    load = threading.Thread(target=drive)
    load.start()
    time.sleep(0.3)
    write_live(server.live_file, following)
    load.join()
    assert [usage(answer) for answer in answers] == [forced(i) for i in range(24)] * 4
    deadline = time.monotonic() + 20
    while status(server)["predictor_version"] != "test/2" and time.monotonic() < deadline:
        time.sleep(0.1)
    found = status(server)
    assert {part["outcome"] for part in found["api"]["live"].values()} == {"loaded"}
    assert (found["policy"], found["predictor_dir"]) == ("feasible-edf", str(newer))

    answer = httpx.post(
        server.url + COMPLETIONS,
        json=completion(5, xargs={"slo_class": "vip"}),
        timeout=LIMIT_S,
    )
    row = logged(server, answer.json()["id"])
    assert (row["predictor"], row["shadow"], row["policy"]) == ("test/2", "test/1", "feasible-edf")
    assert row["shadow_tokens"] == row["predicted_tokens"]  # it is the same model
    assert row["slo_e2e_ms"] == 50000
    earliest = logged(server, answers[0].json()["id"])
    assert (earliest["predictor"], earliest["status"]) == ("test/1", "finished")
    text = httpx.get(f"{server.url}/metrics", timeout=LIMIT_S).text
    assert 'lengthwise_reloads_total{outcome="loaded",what="predictor"}' in text
    infos = {
        line.split('version="')[1].split('"')[0]: float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("lengthwise_predictor_info{") and 'role="champion"' in line
    }
    assert infos == {"test/1": 0.0, "test/2": 1.0}


def test_a_corrupt_version_is_refused_and_serving_goes_on(server, live, predictor_dir, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(predictor_dir, broken)
    (broken / "features.npz").write_bytes(b"PK")
    write_live(
        server.live_file, changed(live, predictor={"directory": str(broken), "version": "bad"})
    )
    answer = reload(server)
    assert answer.status_code == 422
    assert "features.npz" in answer.json()["error"]["message"]
    assert answer.json()["predictor_version"] == "test/1"
    (served,) = together(server, [(COMPLETIONS, completion(7))])
    assert usage(served) == forced(7)
    assert logged(server, served.json()["id"])["predictor"] == "test/1"
