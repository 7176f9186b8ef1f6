"""`simulate` with several instances: arms are routers times policies, and name both."""

import json

import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import capacity_rps, open_workload
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.bench.runners.fleet_runner import (
    FleetRunner,
    fleet_capacity_rps,
    parse_routers,
    routed,
)
from lengthwise.training.bench.runners.simulator_runner import SimulatorRunner, lengths_of
from lengthwise.training.bench.session import fleet_profiles, run_modeled
from lengthwise.training.workspace import Workspace


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "small.jsonl"
    write_workload(
        path,
        [
            WorkloadRequest(
                arrival_s=0.05 * i,
                prompt_tokens=20,
                output_tokens=40 if i % 2 else 400,
                slo=Slo(e2e_s=8.0, slo_class="code") if i % 2 else Slo(ttft_s=3.0),
            )
            for i in range(120)
        ],
    )
    return open_workload(str(path))


def run(source, runner, arms, routers, capacity):
    settings = BenchSettings(
        routed(parse_arms(arms), routers), load=1.5, instances=2, routers=routers or ("gain",)
    )
    return compare(source, settings, runner, capacity_rps=capacity)


def test_each_arm_names_its_router(source):
    profiles = [load_profile("tiny-cpu"), load_profile("shape-few-slots")]
    capacity = fleet_capacity_rps(source, profiles)
    assert capacity == pytest.approx(sum(capacity_rps(source, p) for p in profiles))
    outcome = run(
        source, FleetRunner(profiles, lengths_of(None)), "fcfs:none,feasible-edf:class",
        ("round-robin", "gain"), capacity,
    )  # fmt: skip
    document = json.loads(outcome.result.to_line())
    assert document["engine"] == "simulator, 2 instances, profile tiny-cpu, shape-few-slots"
    assert [(arm["router"], arm["policy"]) for arm in document["arms"]] == [
        ("round-robin", "fcfs"),
        ("round-robin", "feasible-edf"),
        ("gain", "fcfs"),
        ("gain", "feasible-edf"),
    ]
    labels = [arm.label for arm in BenchResult.model_validate(document).arms]
    assert labels == list(outcome.records)
    assert labels[0] == "round-robin/fcfs:none"
    assert all((arm["requests"], arm["lost"]) == (120, 0) for arm in document["arms"])
    assert document["against_base"]["gain/fcfs:none"]["base"] == "round-robin/fcfs:none"


@pytest.mark.parametrize("arms", ["feasible-edf:class", "fcfs:none"])
def test_one_instance_behind_a_router_is_one_engine(source, arms):
    profile = load_profile("tiny-cpu")
    capacity = capacity_rps(source, profile)
    alone = compare(
        source,
        BenchSettings(parse_arms(arms), load=1.5),
        SimulatorRunner(profile, lengths_of(None)),
        capacity_rps=capacity,
    )
    fleet = run(source, FleetRunner([profile], lengths_of(None)), arms, ("gain",), capacity)
    (ours,), (theirs,) = fleet.records.values(), alone.records.values()
    assert ours == theirs
    assert "router" not in json.loads(alone.result.to_line())["arms"][0]


def test_what_simulate_is_asked_for_is_what_it_plays(tmp_path):
    settings = BenchSettings(
        parse_arms("fcfs:none"), workload="mixed", source="synthetic", load=0.5, requests=60,
        repeats=1, profile="tiny-cpu,shape-few-slots", instances=3, routers=("power-of-two",),
    )  # fmt: skip
    assert [p.name for p in fleet_profiles(settings)] == [
        "tiny-cpu",
        "shape-few-slots",
        "tiny-cpu",
    ]
    result = run_modeled(settings, workspace=Workspace(tmp_path)).result
    assert result.run["instances"] == 3
    assert result.run["profile"] == "tiny-cpu,shape-few-slots"
    assert result.bound is None
    assert [arm.router for arm in result.arms] == ["power-of-two"]


def test_what_makes_no_sense_is_refused():
    arms = parse_arms("fcfs:none")
    with pytest.raises(InputError, match="2 profiles need as many --instances, got 1"):
        fleet_profiles(BenchSettings(arms, profile="tiny-cpu,shape-few-slots"))
    with pytest.raises(InputError, match="3 instances need a router"):
        BenchSettings(arms, instances=3)
    with pytest.raises(InputError, match="unknown router 'best': must be one of round-robin"):
        parse_routers("gain,best")
    with pytest.raises(InputError, match="give each router once"):
        parse_routers("gain,gain")
