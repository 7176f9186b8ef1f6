"""Real engine cores behind the router that ships: what they publish is what it goes by."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lengthwise.scheduler.fleet.fleet_request import FleetRequest
from lengthwise.scheduler.fleet.fleet_router import FleetRouter
from lengthwise.scheduler.fleet.make_router import ROUTERS, make_router
from lengthwise.scheduler.fleet.state_message import Published, PublishedRow
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.wire.answer_length import DEFAULT_LEVELS
from lengthwise.scheduler.vllm_adapter.emulated.emulated_front import (
    FLEET_KEY,
    EngineRequest,
    Front,
)
from lengthwise.scheduler.vllm_adapter.emulated.player import Job, JobRequest, profiles_in_turn
from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model

OURS = {"policy": "feasible-edf", "lengths": "oracle", "refit_steps": 0}
PROFILE = load_profile("tiny-cpu")
LEVELS = np.array(DEFAULT_LEVELS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("emulated-fleet")
    build_tiny_model(made / "tiny")
    for name, speed in (("quick", 1.0), ("slow", 3.0)):
        values = {
            "name": name,
            "provenance": "made up",
            "step_time": {
                "base_s": 6e-3 * speed,
                "prefill_step_s": 1e-3 * speed,
                "prefill_token_s": 1e-5 * speed,
                "decode_seq_s": 1e-5 * speed,
                "context_token_s": 1e-8,
            },
            "capacity": {"max_num_seqs": 4, "kv_tokens": 65536, "max_num_batched_tokens": 256},
            "prefix_cache": {"block_tokens": 16},
        }
        (made / f"{name}.json").write_text(json.dumps(values))
    return made


def a_job(folder: Path, requests: list[JobRequest], route: str, settings=OURS) -> Job:
    return Job(
        f"{folder / 'quick.json'},{folder / 'slow.json'}",
        str(folder / "tiny"),
        tuple(requests),
        settings,
        instances=2,
        route=route,
    )


def drawn(n: int, gap_s: float = 0.15) -> list[JobRequest]:
    rng = np.random.default_rng(0)
    requests = []
    for i in range(n):
        length = int(rng.integers(3, 120))
        requests.append(
            JobRequest(
                gap_s * i,
                int(rng.choice([40, 300])),
                length,
                prefix=f"p{i % 3}" if i % 2 else None,
                prefix_tokens=32 if i % 2 else 0,
                xargs={"pred_quantiles": [float(length)] * 12, "slo_e2e_ms": 2500.0},
            )
        )
    return requests


@pytest.mark.parametrize("route", ["gain", "gain-late", "predicted-latency", "free-memory"])
def test_the_router_knows_all_that_the_engines_have(player, folder, route):
    job = a_job(folder, drawn(60), route)
    outcome = player.run(job)
    assert outcome.tokens == [request.output_tokens for request in job.requests]
    assert set(outcome.engine) == {0, 1}
    known = outcome.router
    assert known["router"] == route.removesuffix("-late")
    assert (known["errors"], known["unknown_rows"], known["lost_bookings"]) == (0, 0, 0)
    assert [one["outstanding"] for one in known["instances"]] == [0, 0]
    assert set(known["decisions"]) <= {"score", "planned", "least-outstanding"}
    assert sum(known["decisions"].values()) == len(job.requests)
    assert known["decisions"].get("least-outstanding", 0) < 6  # before the first states
    assert all(one["state_age_s"] < 5.0 for one in known["instances"])


def test_the_quick_engine_gets_more_by_the_gain_and_the_run_repeats(player, folder):
    job = a_job(folder, drawn(80, gap_s=0.08), "gain")
    one, other = player.run(job), player.run(job)
    assert (one.engine, one.last_s) == (other.engine, other.last_s)
    counted = player.run(replace(job, route="round-robin"))
    arrivals_s = np.array([request.arrival_s for request in job.requests])

    def met(outcome):
        return np.mean(np.array(outcome.last_s) - arrivals_s <= 2.5)

    assert one.engine.count(0) > one.engine.count(1)
    assert met(one) > met(counted) + 0.05


def test_what_is_held_back_goes_when_it_may_and_counts_from_its_arrival(player, folder):
    job = a_job(folder, drawn(60, gap_s=0.02), "gain-late")
    outcome = player.run(job)
    assert outcome.router["decisions"]["planned"] > 30
    outcomes = [status["outcomes"]["default"] for status in outcome.status]
    late_s = np.array(outcome.last_s) - np.array([r.arrival_s for r in job.requests])
    assert sum(one["met"] for one in outcomes) == (late_s <= 2.5).sum()


def test_stock_engines_stand_behind_rules_that_need_no_state(player, folder):
    outcome = player.run(a_job(folder, drawn(30), "prefix", settings=None))
    assert outcome.router["decisions"] == {"score": 30}
    assert all(one["state_age_s"] is None for one in outcome.router["instances"])


# -- the front alone --------------------------------------------------------------------------


class Engine:
    """Says what it is told to."""

    def __init__(self) -> None:
        self.at_s, self.busy, self.asked, self.running = 0.0, False, 0, 0
        self.rows, self.others = [], []

    def load(self):
        self.asked += 1
        return Published(
            1, self.asked, 1000.0 + self.at_s, PROFILE, self.rows, self.running, 0, self.others
        ).to_message()


def request(name: str, arrival_s: float) -> EngineRequest:
    xargs = {"pred_quantiles": [30.0] * 12, "slo_ttft_ms": 4000.0}
    return EngineRequest(name, arrival_s, [7] * 20, 100, xargs)


def a_front(rule: str = "gain") -> tuple[Front, list[Engine], FleetRouter]:
    engines = [Engine(), Engine()]
    router = make_router(rule, LEVELS, policy="fcfs", rng=np.random.default_rng(0))
    return Front(router, engines, [PROFILE, PROFILE], LEVELS), engines, router


def test_an_end_is_heard_of_when_it_has_come():
    front, engines, router = a_front()
    ((sent, index),) = front.offer(request("a", 0.0), 0.0)
    assert sent.xargs[FLEET_KEY] == 0
    engines[index].busy = True
    front.ended("a", 0.5)
    front.offer(request("b", 0.4), 0.4)
    assert router.knowledge.counts.sum() == 2
    front.offer(request("c", 0.6), 0.6)
    assert router.knowledge.counts.sum() == 2


def test_a_state_is_taken_after_the_turn_in_which_it_is_due_and_heard_then():
    front, engines, router = a_front()
    front.offer(request("a", 0.0), 0.0)
    engine = engines[0]
    engine.busy = True
    for at_s, asked in ((0.05, 0), (0.15, 1), (0.25, 1), (0.95, 2), (1.0, 2), (1.15, 3)):
        engine.at_s = at_s
        front.turned(0)
        assert engine.asked == asked
    front.offer(request("b", 0.5), 0.5)
    assert router.knowledge.heard_s[0] == 0.15
    assert router.knowledge.heard_s[1] == 0.5  # at rest: asked when somebody comes
    front.offer(request("c", 2.0), 2.0)
    assert router.knowledge.heard_s[0] == 1.15


def test_rules_that_count_ask_no_engine():
    front, engines, router = a_front("power-of-two")
    for number in range(6):
        ((sent, _),) = front.offer(request(f"r{number}", number), number)
        assert FLEET_KEY not in sent.xargs
    assert [engine.asked for engine in engines] == [0, 0]
    assert router.knowledge.counts.sum() == 6


def test_what_is_held_is_looked_at_in_time():
    front, engines, router = a_front("gain-late")
    for i, engine in enumerate(engines):  # full, of others' requests
        engine.at_s, engine.busy, engine.running = 0.25, True, 32
        keys = range(-100 * i - 99, -100 * i)
        engine.rows = [PublishedRow(key, 1.0, 0.0, 0.0, 0.1) for key in keys]
        engine.others = [FleetRequest(key, 0.2, 20.0, np.full(12, 500.0)) for key in keys]
        front.turned(i)
    assert front.next_s() == np.inf
    assert front.offer(request("a", 0.3), 0.3) == []
    assert router.held == 1
    assert front.next_s() == pytest.approx(0.35)
    assert front.look(0.35) == []
    assert front.next_s() == pytest.approx(0.4)
    for i, engine in enumerate(engines):
        engine.at_s, engine.rows, engine.others, engine.running = 0.6, [], [], 0
        front.turned(i)
    ((sent, _),) = front.look(0.6)
    assert sent.name == "a"
    assert front.next_s() == np.inf


def test_profiles_take_turns():
    assert profiles_in_turn("a, b", 3) == ["a", "b", "a"]
    assert profiles_in_turn("a", 2) == ["a", "a"]


@pytest.mark.parametrize("rule", ROUTERS)
def test_every_router_may_stand_there(rule):
    front, _, router = a_front(rule)
    sent = [one for k in range(8) for one in front.offer(request(f"r{k}", 0.1 * k), 0.1 * k)]
    assert len(sent) + router.held == 8
