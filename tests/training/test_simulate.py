"""`simulate` end to end on small workloads, and what policies may know of the lengths."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo, SloTable
from lengthwise.data.workload import WorkloadRequest, write_workload
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.profile import load_profile
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import (
    capacity_rps,
    cut_at_max_tokens,
    length_rows,
    open_workload,
    to_sim,
)
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.bench.runners.simulator_runner import (
    SimulatorRunner,
    lengths_of,
    processes,
)


def small_workload(n: int = 120, seed: int = 0) -> list[WorkloadRequest]:
    """Two classes, short code answers and long chat ones, all within a few seconds."""
    rng = np.random.default_rng(seed)
    code, chat = Slo(e2e_s=20.0, slo_class="code"), Slo(ttft_s=3.0, slo_class="chat")
    return [
        WorkloadRequest(
            arrival_s=float(at),
            prompt_tokens=20,
            output_tokens=int(rng.integers(20, 60) if i % 2 else rng.integers(300, 700)),
            slo=code if i % 2 else chat,
        )
        for i, at in enumerate(np.sort(rng.uniform(0, 8, n)))
    ]


@pytest.fixture(scope="module")
def profile():
    return load_profile("tiny-cpu")


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "small.jsonl"
    write_workload(path, small_workload())
    return open_workload(str(path))


def run(source, profile, arms, *, predictor=None, pool=None, workers=1, **kwargs):
    settings = BenchSettings(parse_arms(arms), **({"load": 1.5} | kwargs))
    runner = SimulatorRunner(profile, lengths_of(predictor), pool=pool, seed=settings.seed)
    return compare(
        source, settings, runner, capacity_rps=capacity_rps(source, profile), workers=workers
    )


def test_ends_in_a_valid_document_with_every_request(source, profile):
    outcome = run(source, profile, "fcfs:none,feasible-edf:oracle,sa:class", load=4.0)
    document = BenchResult.model_validate_json(outcome.result.to_line())
    assert document.provenance == "modeled"
    assert document.engine == "simulator, profile tiny-cpu"
    assert [arm.label for arm in document.arms] == ["fcfs:none", "feasible-edf:oracle", "sa:class"]
    for arm in document.arms:
        assert (arm.requests, arm.lost) == (120, 0)
        assert set(arm.per_class) == {"chat", "code"}
        assert sum(c.requests for c in arm.per_class.values()) == 120
    assert document.arms[1].attainment > document.arms[0].attainment
    assert document.against_base["sa:class"]["base"] == "fcfs:none"


def test_nobody_waits_at_low_load(source, profile):
    light = run(source, profile, "fcfs:none,sa:oracle", load=0.2).result
    assert [arm.attainment for arm in light.arms] == [1.0, 1.0]


def test_load_sets_the_rate_and_a_file_may_keep_its_own(source, profile):
    capacity = capacity_rps(source, profile)
    outcome = run(source, profile, "fcfs:none", load=2.0)
    last = max(r.arrival_s for r in outcome.records["fcfs:none"])
    assert last == pytest.approx(119 / (2 * capacity), rel=1e-6)
    own = run(source, profile, "fcfs:none", load=None)
    assert [r.arrival_s for r in own.records["fcfs:none"]] == [r.arrival_s for r in source.requests]


@pytest.mark.parametrize("load", [0.0, -1.0, float("nan")])
def test_a_load_must_be_positive(source, profile, load):
    with pytest.raises(InputError, match="load must be above 0"):
        run(source, profile, "fcfs:none", load=load)


def test_a_file_is_played_whole_and_once(profile, tmp_path):
    path = tmp_path / "long.jsonl"
    write_workload(path, small_workload(1300))
    long = open_workload(str(path))
    for load in (None, 1.5):
        outcome = run(long, profile, "fcfs:none", load=load)
        assert outcome.result.arms[0].requests == 1300
        assert outcome.result.run["requests_in_file"] == 1300
    asked = run(long, profile, "fcfs:none", load=None, requests=50, repeats=2)
    assert asked.result.arms[0].requests == 100
    within = run(long, profile, "fcfs:none", load=None, duration_s=1.0)
    first_s = long.requests[0].arrival_s
    expected = sum(r.arrival_s <= first_s + 1.0 for r in long.requests)
    assert within.result.arms[0].requests == expected


def without_times(outcome) -> dict:
    document = json.loads(outcome.result.to_line())
    for arm in document["arms"]:
        del arm["plan_ms_p50"], arm["plan_ms_p99"]
    del document["run"]
    return document


def test_figures_know_no_clock_and_no_number_of_processes(profile):
    """A plan searches a fixed number of steps, here and in other processes."""
    source = open_workload("paper", source="synthetic")
    kwargs = {"load": 1.5, "requests": 150, "repeats": 2}
    arms = "sa:oracle,sa-paper:class,edf:none"
    here = run(source, profile, arms, **kwargs)
    with processes(2) as pool:
        there = run(source, profile, arms, pool=pool, workers=2, **kwargs)
    assert without_times(here) == without_times(there)
    assert here.records == there.records


def test_a_request_the_engine_cannot_hold_is_named(profile, tmp_path):
    path = tmp_path / "w.jsonl"
    too_long = WorkloadRequest(0.0, profile.capacity.kv_tokens, 5, Slo())
    write_workload(path, [too_long])
    with pytest.raises(InputError, match="does not fit: engine profile 'tiny-cpu' has"):
        run(open_workload(str(path)), profile, "fcfs:none", load=None)


def test_a_named_workload_needs_a_load(profile):
    with pytest.raises(InputError, match="has no pace of its own: give a load"):
        run(open_workload("paper", source="synthetic"), profile, "fcfs:none", load=None)


def test_the_client_s_limit_cuts_what_a_policy_may_fear():
    requests = [
        WorkloadRequest(0.0, 5, 40, Slo(), max_tokens=50),
        WorkloadRequest(0.0, 5, 400, Slo()),
    ]
    rows = np.array([[10.0, 60.0], [10.0, 900.0]])
    assert cut_at_max_tokens(rows, requests).tolist() == [[10.0, 50.0], [10.0, 900.0]]


def test_classes_are_worth_what_the_slo_table_says():
    table = SloTable.from_dict({"chat": {"ttft_ms": 1000, "weight": 3}, "code": {"e2e_ms": 1000}})
    requests = small_workload(4)
    assert to_sim(requests, weights=table).weight.tolist() == [3.0, 1.0, 3.0, 1.0]
    assert to_sim(requests).weight.tolist() == [1.0] * 4


def test_what_each_source_of_lengths_reveals():
    requests = small_workload(40)
    true = np.array([r.output_tokens for r in requests])
    oracle, levels = length_rows(requests, "oracle", None)
    assert (oracle == true[:, None]).all()
    of_class, _ = length_rows(requests, "class", None)
    assert len({tuple(row) for row in of_class}) == 2
    nothing, _ = length_rows(requests, "none", None)
    assert len({tuple(row) for row in nothing}) == 1
    for rows in (oracle, of_class, nothing):
        assert rows.shape == (40, len(levels))
        assert (np.diff(rows, axis=1) >= 0).all()
        assert (rows >= 1).all()
    with pytest.raises(InputError, match="predictor"):
        length_rows(requests, "learned", None)


def test_learned_lengths_come_from_the_predictor(predictor_dir, profile, tmp_path):
    predictor = LengthPredictor.load(predictor_dir)
    source = open_workload("paper", source="synthetic")
    requests = source.draw(30, 5.0, 1)
    rows, levels = length_rows(requests, "learned", predictor)
    expected = predictor.predict([r.prompt for r in requests], [r.slo.slo_class for r in requests])
    assert len(levels) == rows.shape[1] == expected.quantiles.shape[1]
    outcome = run(source, profile, "sa:learned", predictor=predictor, requests=30, repeats=1)
    assert outcome.result.source_label == "synthetic"
    assert all(r.predicted_tokens for r in outcome.records["sa:learned"])


def test_nothing_is_predicted_of_requests_without_prompts(predictor_dir, source, profile):
    with pytest.raises(InputError, match="none of 120 requests has one"):
        run(source, profile, "sa:learned", predictor=LengthPredictor.load(predictor_dir))


def test_workload_names_and_files_are_checked(tmp_path):
    with pytest.raises(InputError, match="unknown workload 'papers': must be one of paper"):
        open_workload("papers")
    unsorted = tmp_path / "unsorted.jsonl"
    rows = [{"arrival_s": at, "prompt_tokens": 5, "output_tokens": 5} for at in (1.0, 0.5)]
    unsorted.write_text("\n".join(json.dumps(r) for r in rows))
    with pytest.raises(InputError, match=r"unsorted\.jsonl:2"):
        open_workload(str(unsorted))
    with pytest.raises(InputError, match="unknown arrivals"):
        open_workload("paper", source="synthetic", arrivals="uniform")
