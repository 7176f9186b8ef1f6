"""Admission control: the API process's questions, the engine's answers, and both together."""

from __future__ import annotations

import asyncio
import time

import pytest
from echo_client import CHAT, COMPLETIONS, Client
from engineless import FakeEngine, make_request
from toy_engine import QUANTILES

from lengthwise.data.request_log import read_request_log
from lengthwise.data.slo import Slo
from lengthwise.scheduler.serving.api.admission_desk import AdmissionDesk
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.settings import AdmissionSettings, make_settings
from lengthwise.scheduler.serving.wire.hints import Hints
from lengthwise.scheduler.serving.wire.seal import sealed

SHED = {"mode": "shed", "max_share": 1.0}


def asked(seconds=5.0, **xargs):
    return {
        "xargs": sealed({"pred_quantiles": QUANTILES} | xargs),
        "prompt_tokens": 8,
        "max_tokens": None,
        "deadline_unix_s": time.time() + seconds,
    }


@pytest.fixture
def busy(tiny_dir, tmp_path):
    """One slot, and 40 requests of some 3 seconds in line."""

    def build(**admission):
        settings = {
            "policy": "fcfs", "plan_share": 1.0, "refit_steps": 0, "request_log": str(tmp_path),
            "slo_table": {"chat": {"ttft_ms": 5000.0}}, "admission": SHED | admission,
        }  # fmt: skip
        fake = FakeEngine(tiny_dir, settings, max_num_seqs=1)
        for i in range(40):
            fake.add(make_request(f"r{i}", pred_quantiles=[20 * q for q in QUANTILES]))
        fake.step()
        return fake

    return build


def acted(fake, question, verdict, judge=None):
    """The API process says what it made of a verdict."""
    said = [judge or verdict["judge"], question, verdict["action"]]
    fake.scheduler.answers.answer("lengthwise_acted", said)


def test_who_cannot_make_it_is_shed_and_logged(busy, tmp_path):
    fake = busy()
    before = len(fake.scheduler.core.table)
    question = asked(slo_class="chat", tenant="t1")
    verdict = fake.scheduler.answers.answer("lengthwise_admit", question)
    assert verdict["action"] == "shed"
    assert "chat" not in fake.scheduler.lengthwise_status()["outcomes"]
    acted(fake, question, verdict, judge="another")
    acted(fake, question, verdict)
    assert 30 < verdict["retry_after_s"] <= 600
    assert (
        fake.scheduler.answers.answer("lengthwise_admit", asked(slo_ttft_ms=600_000))["action"]
        == "admit"
    )
    assert fake.scheduler.answers.answer("lengthwise_admit", asked())["action"] == "admit"
    assert len(fake.scheduler.core.table) == before
    fake.run()
    status = fake.scheduler.lengthwise_status()
    assert status["outcomes"]["chat"] == {"missed": 1, "shed": 1}
    assert status["admission"] | {"recent_share": 0} == {
        "mode": "shed", "asked": 3, "shed": 1, "downgraded": 0, "late": 0, "recent_share": 0,
    }  # fmt: skip
    assert status["tenants"]["by_tenant"]["t1"]["missed"] == 1
    fake.scheduler.shutdown()
    rows = read_request_log(tmp_path)
    row = rows[rows["status"] == "shed"].iloc[0]
    assert (row["slo_class"], row["tenant"], row["admission"]) == ("chat", "t1", "shed")
    assert (row["slo_ttft_ms"], row["output_tokens"]) == (5000, 0)
    assert bool(row["met"]) is False
    assert len(rows) == 41


@pytest.mark.parametrize("policy", ["sa", "feasible-edf"])
def test_the_policy_in_charge_says_where_a_newcomer_stands(busy, policy):
    fake = busy()
    assert "error" not in fake.scheduler.answers.answer("lengthwise_configure", {"policy": policy})
    # best effort waits behind whoever has an objective, which arrival order does not know
    assert (
        fake.scheduler.answers.answer("lengthwise_admit", asked(slo_class="chat"))["action"]
        == "admit"
    )
    assert (
        fake.scheduler.answers.answer("lengthwise_admit", asked(slo_e2e_ms=1))["action"] == "shed"
    )


def test_a_late_question_is_not_decided(busy):
    fake = busy()
    assert fake.scheduler.answers.answer("lengthwise_admit", asked(-1.0, slo_class="chat")) == {
        "action": "admit"
    }
    status = fake.scheduler.lengthwise_status()
    assert (status["admission"]["late"], status["admission"]["shed"]) == (1, 0)
    assert "chat" not in status["outcomes"]


def test_the_caps_hold_in_total_and_by_class(busy):
    fake = busy(max_share=0.5, per_class={"chat": 0.25}, window=20)
    actions = [
        fake.scheduler.answers.answer("lengthwise_admit", asked(slo_ttft_ms=10, slo_class=name))[
            "action"
        ]
        for name in ["chat"] * 8 + ["default"] * 12
    ]
    assert actions[:8].count("shed") == 2
    assert actions.count("shed") == 10


def test_a_downgraded_request_is_best_effort_and_its_row_says_so(busy, tmp_path):
    fake = busy(mode="downgrade")
    question = asked(slo_class="chat")
    verdict = fake.scheduler.answers.answer("lengthwise_admit", question)
    assert verdict["action"] == "downgrade"
    acted(fake, question, verdict)
    assert fake.scheduler.lengthwise_status()["admission"]["downgraded"] == 1
    fake.add(
        make_request(
            "down", pred_quantiles=QUANTILES, slo_class="chat", slo_ttft_ms=5000,
            lw_admission="downgraded",
        )
    )  # fmt: skip
    fake.run()
    fake.scheduler.shutdown()
    rows = read_request_log(tmp_path)
    assert "shed" not in set(rows["status"])
    row = rows.set_index("request_id").loc["down"]
    assert (row["admission"], row["slo_class"], row["status"]) == ("downgraded", "chat", "finished")
    assert row["met"] is None or row["met"] != row["met"]


@pytest.mark.parametrize("said", [None, [], ["j"], ["j", {}, "shed"], 7, ["j", None, None], {}])
def test_a_word_of_no_verdict_books_nothing(busy, said):
    fake = busy()
    name = fake.scheduler.control.admission._name
    said = [name if one == "j" else one for one in said] if isinstance(said, list) else said
    fake.scheduler.answers.answer("lengthwise_acted", said)
    status = fake.scheduler.lengthwise_status()
    assert (status["admission"]["shed"], status["outcomes"]) == (0, {})


def test_off_costs_nothing_and_admits(tiny_dir):
    scheduler = FakeEngine(tiny_dir).scheduler
    assert scheduler.answers.answer("lengthwise_admit", asked(slo_ttft_ms=1)) == {"action": "admit"}
    assert scheduler.lengthwise_status()["admission"] == {"mode": "off"}
    client = Client()
    client.post(CHAT, chat())
    assert client.core.asked == []


@pytest.mark.parametrize(
    "values",
    [{"mode": "drop"}, {"threshold": 2}, {"per_class": {"a": -1}}, {"window": 0}, {"cap": 1}],
)
def test_bad_settings_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        make_settings({"admission": values})


# -- the middleware ---------------------------------------------------------------------------


def chat(**xargs):
    return {"messages": [{"role": "user", "content": "Name three rivers."}], "vllm_xargs": xargs}


def unanswered(cause):
    return api_metrics().admission_unanswered.labels(cause)._value.get()


def test_a_shed_request_is_a_503_that_says_when_to_come_back():
    client = Client(admission=SHED)
    client.core.answer = {"action": "shed", "retry_after_s": 12.2}
    answer = client.post(CHAT, chat(slo_class="chat", tenant="t1"))
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "13"
    assert "SLO" in answer.json()["error"]["message"]
    ((method, question),) = client.core.asked
    assert method == "lengthwise_admit"
    assert question["xargs"]["tenant"] == "t1"
    assert question["xargs"]["slo_ttft_ms"] == 3000
    assert question["prompt_tokens"] > 1


@pytest.mark.parametrize(
    ("said", "booked"),
    [
        ([("shed", "a")], ["a"]),
        ([("downgrade", "a")], ["a"]),
        ([("admit", None)], []),
        ([("shed", "a"), ("shed", "b")], ["a"]),
        ([("shed", "a"), ("admit", None)], []),
        ([("shed", "a"), ("downgrade", "b")], ["b"]),
        ([("shed", "a"), (None, None)], []),
        ([("shed", "slow")], []),
    ],
)
def test_a_verdict_is_booked_once_and_by_whom_it_was_taken_from(said, booked):
    """Whatever the other engines say, and not at all where it came too late."""
    told = []

    class Core:
        async def ask_all(self, method, *args, timeout_s):
            if method == "lengthwise_acted":
                told.append(args[0])
                return {}
            assert method == "lengthwise_admit"
            if said[0][1] == "slow":
                return {"0": TimeoutError()}
            return {
                str(place): {"action": action, "judge": judge} if action else RuntimeError()
                for place, (action, judge) in enumerate(said)
            }

    async def play():
        desk = AdmissionDesk(AdmissionSettings(mode="shed"), api_metrics())
        answer = await desk.ask(Core(), Hints(Slo(e2e_s=1.0)), 10, 10)
        await asyncio.sleep(0)
        return answer

    answer = asyncio.run(play())
    assert [judge for judge, _, _ in told] == booked
    assert [action for _, _, action in told] == [answer.action] * len(booked)


def test_best_effort_and_strangers_are_not_asked_about():
    client = Client(admission=SHED)
    client.core.answer = {"action": "shed"}
    assert client.post(COMPLETIONS, {"prompt": "hello"}).status_code == 200
    client.app.state.args = type("Args", (), {"api_key": ["secret"]})
    assert client.post(CHAT, chat(slo_class="chat")).status_code == 200  # vLLM's own 401 follows
    assert client.core.asked == []


def test_a_downgraded_request_goes_on_with_a_mark_no_client_can_set():
    client = Client(admission=SHED | {"mode": "downgrade"})
    client.core.answer = {"action": "downgrade", "retry_after_s": None}
    received = client.post(CHAT, chat(slo_class="chat")).json()
    assert received["vllm_xargs"]["lw_admission"] == "downgraded"
    client.core.answer = {"action": "admit"}
    received = client.post(CHAT, chat(slo_class="chat", lw_admission="downgraded")).json()
    assert "lw_admission" not in received["vllm_xargs"]


@pytest.mark.parametrize("answer", [RuntimeError("dead"), {}, None])
def test_an_engine_in_trouble_means_admission_and_a_count(answer):
    client = Client(admission=SHED)
    client.core.answer = answer
    before = unanswered("error")
    assert client.post(CHAT, chat(slo_class="chat")).status_code == 200
    assert unanswered("error") == before + 1


def test_a_slow_engine_means_admission_and_a_count():
    client = Client(admission=SHED | {"timeout_ms": 20})

    async def slow(method, *args):
        await asyncio.sleep(5.0)

    client.core.call_utility_async = slow
    before, began_s = unanswered("timeout"), time.monotonic()
    assert client.post(CHAT, chat(slo_class="chat")).status_code == 200
    assert time.monotonic() - began_s < 2.0
    assert unanswered("timeout") == before + 1


def test_a_tenant_reaches_the_engine_and_a_bad_one_is_a_400():
    client = Client()
    received = client.post(CHAT, chat(tenant="body"), headers={"X-Tenant": "gateway"}).json()
    assert received["vllm_xargs"]["tenant"] == "gateway"
    answer = client.post(CHAT, chat(), headers={"x-tenant": "a b"})
    assert answer.status_code == 400
    assert "tenant" in answer.json()["error"]["message"]
