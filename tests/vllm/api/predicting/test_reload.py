"""Hot reload against a fake engine: what is swapped, what is refused, what a client may ask."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from echo_client import COMPLETIONS, LEVELS, TABLE, Client, WordPredictor
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, generate_latest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import OBJECTIVES
from lengthwise.scheduler.policies.policy_params import KNOBS
from lengthwise.scheduler.serving.api.own_routes import configuring
from lengthwise.scheduler.serving.api.predicting import candidate
from lengthwise.scheduler.serving.api.predicting.batching import ServedPredictor
from lengthwise.scheduler.serving.api.predicting.candidate import PROBES, load_checked
from lengthwise.scheduler.serving.engine.plans.prepared_policy import prepare_policy
from lengthwise.scheduler.serving.live import (
    LivePredictor,
    LiveState,
    live_state,
    make_live,
    read_live,
    write_live,
)
from lengthwise.scheduler.serving.settings import make_settings


def counted(what, outcome):
    labels = {"what": what, "outcome": outcome}
    return REGISTRY.get_sample_value("lengthwise_reloads_total", labels) or 0.0


def role(name, version):
    return REGISTRY.get_sample_value(
        "lengthwise_predictor_info", {"role": name, "version": version}
    )


class Live(Client):
    """A client whose server follows a live file."""

    def __init__(self, tmp_path, predictor=None, **settings):
        self.live_file = tmp_path / "live.json"
        super().__init__(predictor, live_file=str(self.live_file), live_poll_s=3600, **settings)

    def write(self, **changes):
        write_live(self.live_file, LiveState.model_validate(self.start() | changes))

    def start(self):
        return live_state(self.asgi.settings).model_dump()

    def check(self, again=False):
        ask = configuring({"app": self.app})
        outcomes = asyncio.run(self.asgi.reloader.check(ask, again))
        return {part: found.outcome for part, found in outcomes.items()}

    def sent(self, key):
        return [request[key] for _, request in self.core.asked if key in request]


@pytest.fixture
def served(tmp_path):
    return Live(tmp_path, WordPredictor(), predictor_version="words/1")


def test_the_file_of_the_start_changes_nothing(served):
    served.write()
    assert set(served.check().values()) == {"unchanged"}
    assert served.core.asked == []
    assert served.check() == served.check(again=True)


def test_a_new_predictor_is_loaded_told_to_the_engine_and_swapped(served, predictor_dir):
    served.write(predictor={"directory": str(predictor_dir), "version": "models:/m/2"})
    before = counted("predictor", "loaded")
    assert served.check()["predictor"] == "loaded"
    assert served.core.asked == [
        (
            "lengthwise_configure",
            {"predictor_dir": str(predictor_dir), "predictor_version": "models:/m/2"},
        )
    ]
    assert served.xargs({"prompt": "hi"})["pred_version"] == "models:/m/2"
    assert counted("predictor", "loaded") == before + 1
    assert (role("champion", "words/1"), role("champion", "models:/m/2")) == (0, 1)
    assert served.check()["predictor"] == "loaded"  # what the last look did
    assert len(served.core.asked) == 1


def corrupt(directory, file, content):
    path = directory / file
    path.write_bytes(path.read_bytes()[:200] if content is None else content)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("card.json", b"{"),
        ("card.json", b"[]"),
        ("card.json", b'{"format_version": 99}'),
        ("features.npz", None),
        ("calibration.json", b"{}"),
        ("estimator", None),
    ],
)
def test_a_corrupt_artifact_is_refused_once_and_the_old_one_stays(
    served, predictor_dir, tmp_path, caplog, file, content
):
    broken = tmp_path / "broken"
    shutil.copytree(predictor_dir, broken)
    if file == "estimator":
        for path in (broken / "estimator").rglob("*.*"):
            corrupt(path.parent, path.name, None)
    else:
        corrupt(broken, file, content)
    served.write(predictor={"directory": str(broken), "version": "bad/1"})
    before = counted("predictor", "refused")
    with caplog.at_level(logging.WARNING):
        assert served.check()["predictor"] == "refused"
        assert served.check()["predictor"] == "refused"
    assert counted("predictor", "refused") == before + 1
    assert len([r for r in caplog.records if "predictor refused" in r.getMessage()]) == 1
    assert served.core.asked == []
    assert served.xargs({"prompt": "hi"})["pred_version"] == "words/1"
    served.check(again=True)
    assert counted("predictor", "refused") == before + 2
    served.write(policy="edf")  # another change of the file, the predictor as it was before
    assert served.check() == {
        "policy": "loaded", "slo_table": "unchanged", "shadow": "unchanged",
    }  # fmt: skip


class Odd(WordPredictor):
    """Predicts what a test says."""

    def __init__(self, row=None, levels=LEVELS):
        super().__init__()
        self.row = np.linspace(10, 120, len(LEVELS)) if row is None else np.asarray(row, float)
        self.levels = levels

    def predict(self, prompts, slo_class=None, rows=None):
        super().predict(prompts)
        return SimpleNamespace(quantiles=np.tile(self.row, (len(prompts), 1)))


@pytest.mark.parametrize(
    ("predictor", "reason"),
    [
        (Odd([np.nan] * 12), "not finite"),
        (Odd([0.5] * 12), "outside 1 to"),
        (Odd(list(range(12, 0, -1))), "non-decreasing"),
        (Odd([1] * 6 + [5000] * 6), "span a factor of 5000"),
        (Odd(np.linspace(1, 5, 7)), r"an array \(9, 7\)"),
        (Odd(levels=tuple(np.linspace(0.1, 0.9, 12))), "at levels"),
    ],
)
def test_nonsense_is_refused(monkeypatch, tmp_path, predictor, reason):
    monkeypatch.setattr(candidate, "load_priors", lambda directory: None)
    monkeypatch.setattr(candidate, "load_predictor", lambda directory: (predictor, True))
    with pytest.raises(InputError, match=reason):
        load_checked(LivePredictor(directory="odd"), LEVELS, 1.0)


def test_slow_and_raising_predictors_are_refused(monkeypatch):
    slow, raising = Odd(), Odd()
    slow.stall_s = 0.02
    raising.error = RuntimeError("broken")
    monkeypatch.setattr(candidate, "load_priors", lambda directory: None)
    for predictor, reason in ((slow, "above the time-out of 0.01 s"), (raising, "broken")):
        monkeypatch.setattr(candidate, "load_predictor", lambda directory, p=predictor: (p, True))
        with pytest.raises(InputError, match=reason):
            load_checked(LivePredictor(directory="odd"), LEVELS, 0.01)
    monkeypatch.setattr(candidate, "load_predictor", lambda directory: (Odd(), False))
    found = load_checked(LivePredictor(directory="odd"), LEVELS, 1.0)
    assert (found.version, found.quick, found.directory) == ("words/1", False, "odd")
    assert len(PROBES) >= 8


def test_what_the_engine_refuses_is_not_swapped_in(served, predictor_dir):
    served.core.answer = {"error": "other levels"}
    served.write(predictor={"directory": str(predictor_dir)}, slo_table={"vip": {}})
    assert served.check()["predictor"] == served.check()["slo_table"] == "refused"
    assert served.service.version == "words/1"
    assert served.post(COMPLETIONS, {"prompt": "hi"}, {"x-slo-class": "vip"}).status_code == 400


def test_an_engine_that_does_not_answer_is_asked_again_later(served):
    now = [100.0]
    served.asgi.reloader._clock = lambda: now[0]
    served.core.answer = RuntimeError("busy")
    served.write(policy="edf")
    assert served.check()["policy"] == "failed"
    served.core.answer = {"policy": "edf", "lengths": "learned"}
    assert served.check()["policy"] == "failed"
    now[0] += 61
    assert served.check()["policy"] == "loaded"


def test_policy_and_slo_table_reload_in_both_processes(served):
    assert served.post(COMPLETIONS, {"prompt": "hi"}, {"x-slo-class": "vip"}).status_code == 400
    table = {"vip": {"ttft_ms": 250.0}}
    served.write(policy="feasible-edf", slo_table=table)
    assert served.check()["policy"] == "loaded"
    assert served.sent("policy") == ["feasible-edf"]
    assert served.sent("slo_table") == [table]
    assert served.xargs({"prompt": "hi"}, {"x-slo-class": "vip"})["slo_ttft_ms"] == 250
    assert served.post(COMPLETIONS, {"prompt": "hi"}, {"x-slo-class": "code"}).status_code == 400


@pytest.mark.parametrize(
    "content",
    [
        '{"policy": "ed',
        "[1]",
        '{"polcy": "edf"}',
        '{"policy": "magic"}',
        '{"policy": "edf", "policy_params": {"warp": 9}}',
        '{"policy_params": {"warp": 9}}',
        '{"policy": "sa", "policy_params": {"budget_s": -1}}',
        '{"policy": "sa", "policy_params": {"name": "edf"}}',
        '{"policy": "sa", "policy_params": {"horizon": "2"}}',
        '{"policy": "sa", "policy_params": {"head": 2.5}}',
        '{"policy": "sa", "policy_params": {"tokens_price": NaN}}',
        '{"policy": "edf", "slo_table": {"chat": {"ttft_ms": -3}}}',
        '{"policy": "edf", "slo_table": {"chat": {"weight": true}}}',
        '{"policy": "edf", "slo_table": {"chat": {"e2e_ms": 1e400}}}',
        '{"policy": "edf", "slo_table": {"chat": 5}}',
        '{"policy": "edf", "predictor": {"directory": ""}}',
        '{"policy": "edf", "predictor": "models:/m/1"}',
        '{"policy": "edf", "predictor": {"directory": "d", "version": "\\ud800"}}',
        '{"policy": "edf", "shadow": {"directory": "d", "version": "\\udfff"}}',
        '{"policy": "edf", "shadow": {"directory": "d", "version": "%s"}}' % ("v" * 1025),
        "\udcff",
        "",
    ],
)
def test_a_wrong_file_is_refused_whole(served, content):
    served.live_file.write_bytes(content.encode(errors="surrogateescape"))
    before = counted("file", "refused")
    assert served.check() == served.check() == {"file": "refused"}
    assert counted("file", "refused") == before + 1
    assert served.core.asked == []
    with pytest.raises(InputError) as error:
        read_live(served.live_file)
    assert "\n" not in str(error.value)
    served.write(policy="edf")
    assert served.check()["policy"] == "loaded"


@pytest.mark.parametrize("label", ["\ud800", "v" * 5000, [], None, 7, "a\nb"])
def test_a_label_that_a_card_gives_itself_can_be_sent_and_shown(served, predictor_dir, label):
    """It becomes a label of metrics, and rides with every request."""
    directory = served.live_file.parent / "labelled"
    shutil.copytree(predictor_dir, directory)
    card = json.loads((directory / "card.json").read_text())
    (directory / "card.json").write_text(json.dumps(card | {"version": label}))
    served.write(predictor={"directory": str(directory)}, shadow={"directory": str(directory)})
    assert set(served.check().values()) == {"loaded", "unchanged"}
    assert len(served.service.version) <= 1024
    served.service.version.encode()
    generate_latest()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(
        [("policy_params", "sa", name) for name in (*KNOBS["sa"], "budget_s", "seed", "name")]
        + [("policy_params", "sa-paper", name) for name in (*KNOBS["sa-paper"], "budget_s")]
        + [("slo_table", "chat", f"{name}_ms") for name in OBJECTIVES]
        + [("slo_table", "chat", "weight")]
    ),
    st.floats() | st.integers() | st.booleans() | st.text(max_size=3) | st.none(),
)
def test_every_number_of_the_file_is_taken_or_refused_in_one_line(place, value):
    part, of, name = place
    said = {"policy": of} if part == "policy_params" else {}
    said[part] = {name: value} if part == "policy_params" else {of: {name: value}}
    try:
        state = make_live(json.loads(json.dumps(said)), "live file 'x'")
    except InputError as error:
        state, refused = None, str(error)
    if state is None:
        assert refused.startswith("live file 'x': ")
        assert len(refused.splitlines()) == 1
        assert "error" not in refused.lower()
    elif state.policy is not None:
        prepared = prepare_policy(make_settings({}), state.policy, state.policy_params)
        assert prepared.policy.name == of


def test_a_pipe_in_the_files_place_keeps_nobody_waiting(served):
    os.mkfifo(served.live_file)
    assert served.check() == {"file": "refused"}
    served.live_file.unlink()
    served.write(policy="edf")
    assert served.check()["policy"] == "loaded"


def test_a_missing_file_is_told_once_and_read_when_it_comes(served):
    before = counted("file", "failed")
    assert served.check() == served.check(again=True) == {"file": "failed"}
    assert counted("file", "failed") == before + 1
    served.write(policy="edf")
    assert served.check()["policy"] == "loaded"


def test_the_file_is_never_half_written(tmp_path):
    path = tmp_path / "deep" / "live.json"
    write_live(path, LiveState(policy="edf"))
    assert read_live(path).policy == "edf"
    assert os.listdir(path.parent) == ["live.json"]  # noqa: PTH208


def test_the_watch_begins_with_the_first_call_and_goes_on(tmp_path, predictor_dir):
    client = Live(tmp_path, WordPredictor(), predictor_version="words/1")
    client.asgi.reloader._settings = make_settings({"live_poll_s": 0.01, "live_file": "x"})

    async def served_version():
        answer = await client._call("POST", COMPLETIONS, json={"prompt": "hi"})
        return answer.json()["vllm_xargs"]["pred_version"]

    async def scenario():
        assert await served_version() == "words/1"
        client.write(predictor={"directory": str(predictor_dir), "version": "v2"})
        for _ in range(500):
            await asyncio.sleep(0.01)
            if await served_version() == "v2":
                return
        raise AssertionError("the new version never came")

    asyncio.run(scenario())


def test_the_watch_ends_even_where_the_engine_answers_at_that_moment(served):
    """asyncio.run waits for what it cancels: a watch that went on would hang the server's end."""
    served.write(policy="edf")
    reloader = served.asgi.reloader

    async def answer(method, request):
        reloader._task.cancel()
        return {"policy": "edf", "lengths": "learned"}

    async def scenario():
        served.core.call_utility_async = answer
        reloader.start(configuring({"app": served.app}))
        _, pending = await asyncio.wait([reloader._task], timeout=0.5)
        reloader._task.cancel()
        return pending

    assert asyncio.run(scenario()) == set()


def test_a_request_in_flight_is_answered_by_the_predictor_it_asked():
    old, new = WordPredictor(), WordPredictor()
    old.stall_s = 0.1
    client = Client(old, predictor_version="old")

    async def scenario():
        asked = asyncio.create_task(client._call("POST", COMPLETIONS, json={"prompt": "a"}))
        while not old.calls:
            await asyncio.sleep(0.002)
        client.service.replace(ServedPredictor(new, "new", quick=False))
        later = await client._call("POST", COMPLETIONS, json={"prompt": "a"})
        return [r.json()["vllm_xargs"]["pred_version"] for r in (await asked, later)]

    assert asyncio.run(scenario()) == ["old", "new"]


def test_reload_by_endpoint_says_what_happened(served, predictor_dir):
    served.write(predictor={"directory": str(predictor_dir), "version": "v2"})
    answer = served.call("POST", "/lengthwise/reload")
    assert answer.status_code == 200
    assert answer.json()["parts"]["predictor"] == {"outcome": "loaded", "reason": None}
    assert answer.json()["predictor_version"] == "v2"
    status = served.call("GET", "/lengthwise/status").json()["api"]
    assert status["predictor_dir"] == str(predictor_dir)
    assert status["live"]["predictor"]["outcome"] == "loaded"
    served.write(predictor={"directory": "/no/such/place"})
    answer = served.call("POST", "/lengthwise/reload")
    assert answer.status_code == 422
    assert "card.json" in answer.json()["error"]["message"]
    assert answer.json()["parts"]["predictor"]["outcome"] == "refused"
    assert answer.json()["predictor_version"] == "v2"
    served.core.answer = RuntimeError("dead")
    served.write(policy="edf")
    assert served.call("POST", "/lengthwise/reload").status_code == 503
    served.live_file.unlink()
    assert served.call("POST", "/lengthwise/reload").status_code == 409
    assert Client().call("POST", "/lengthwise/reload").status_code == 409


@pytest.mark.parametrize(("method", "path"), [("POST", "reload"), ("GET", "status")])
def test_reload_and_status_ask_for_vllms_key_where_there_is_one(served, method, path):
    served.app.state.args = SimpleNamespace(api_key=["secret"])
    served.write(policy="edf")
    path = f"/lengthwise/{path}"
    assert served.call(method, path).status_code == 401
    assert served.core.asked == []
    for key, status in (("wrong", 401), ("secret", 200)):
        headers = {"authorization": f"Bearer {key}"}
        assert served.call(method, path, headers=headers).status_code == status


@pytest.mark.parametrize(
    "body",
    [
        {"predictor_dir": "/etc"},
        {"predictor_version": "v"},
        {"step_log": "/etc/x"},
        {"slo_table": {}},
        {"policy_params": {}},
    ],
)
def test_no_request_chooses_a_path(body):
    client = Client(WordPredictor(), allow_configure=True, slo_table=TABLE)
    answer = client.post("/lengthwise/configure", body | {"lengths": "none"})
    assert answer.status_code == 400
    assert next(iter(body)) in answer.json()["error"]["message"]
    assert client.core.asked == []
    assert client.post("/lengthwise/configure", {"log_steps": True}).status_code == 200
    assert client.core.asked[-1][1]["log_steps"] is True
