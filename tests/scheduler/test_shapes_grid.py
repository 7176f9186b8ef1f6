"""The grid over shapes: what is played, what is skipped, and tables of known outcomes."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.simulator.shapes import ANY_LENGTHS, Run, build, play, policy_of, wanted
from benchmarks.simulator.shapes_table import (
    best_rule,
    by_cell,
    losses,
    mean_over,
    means_table,
    summary,
)

ARGUMENTS = argparse.Namespace(
    first_seed=0,
    seeds=2,
    workloads=["mixed"],
    shapes=["shape-many-slots", "tiny-cpu"],
    loads=[0.8, 1.6],
    lengths=["oracle", "class"],
    policies=["fcfs", "sjf", "sa:iterations=0"],
    requests=40,
)


def test_every_run_is_wanted_once_and_done_ones_are_skipped():
    runs = [run for chunk in wanted(ARGUMENTS, set()) for run in chunk]
    # 2 seeds, 2 shapes, 2 loads; fcfs knows no lengths, the others are played with both kinds
    assert len(runs) == 2 * 2 * 2 * (1 + 2 + 2)
    assert len({run.key for run in runs}) == len(runs)
    assert {run.lengths for run in runs if run.policy == "fcfs"} == {ANY_LENGTHS}
    done = {run.key for run in runs if run.policy != "sjf"}
    left = [run for chunk in wanted(ARGUMENTS, done) for run in chunk]
    assert {run.policy for run in left} == {"sjf"}
    assert not list(wanted(ARGUMENTS, {run.key for run in runs}))


def test_a_policy_takes_parameters():
    assert policy_of("sjf", 0).name == "sjf"
    assert policy_of("sa:iterations=0", 0).name == "sa"
    with pytest.raises(ValueError, match="nonsense"):
        policy_of("sa:nonsense=1", 0)


def test_requests_and_load_are_those_of_the_shape():
    run = Run("shape-many-slots", "mixed", 1.6, "oracle", 0, 60, "fcfs")
    workload, profile = build(run)
    assert profile.name == "shape-many-slots"
    half, _ = build(Run(**(asdict(run) | {"load": 0.8})))
    assert np.allclose(half.arrival_s, 2 * workload.arrival_s)
    assert (workload.quantiles[:, 0] == workload.output_tokens).all()
    tiny, _ = build(Run(**(asdict(run) | {"shape": "tiny-cpu"})))
    assert (workload.prompt_tokens == 3 * tiny.prompt_tokens).all()


def test_a_played_run_is_a_line_with_its_figures():
    run = Run("shape-prefix-cache", "agents", 1.6, ANY_LENGTHS, 0, 60, "fcfs")
    (line,) = play([run])
    assert json.loads(json.dumps(line))["key"] == run.key
    assert set(line["per_class"]) == {"agent_step", "chat"}
    shares = {"agent_step": 0.65, "chat": 0.35}
    whole = sum(shares[name] * value for name, value in line["per_class"].items())
    assert line["attainment"] == pytest.approx(whole)
    assert line["prefilled_share"] < 0.9  # the shared beginnings are computed once
    assert line["mean_ttft_s"] < line["mean_e2e_s"] < line["p99_e2e_s"]


def lines(gain: float, seeds: int = 4) -> list[dict]:
    """``sa`` above the best rule by ``gain`` everywhere, but below it in one cell."""
    found = []
    for shape in ("tiny-cpu", "shape-a", "shape-b"):
        for load in (0.8, 1.6):
            for seed in range(seeds):
                level = {"fcfs": 0.5, "sjf": 0.6, "sa": 0.6 + gain}
                if (shape, load) == ("shape-b", 0.8):
                    level["sa"] = 0.55
                for policy, value in level.items():
                    found.append(
                        {
                            "policy": policy, "shape": shape, "workload": "mixed", "load": load,
                            "lengths": ANY_LENGTHS if policy == "fcfs" else "oracle",
                            "seed": seed, "attainment": value + 0.01 * seed,
                            "mean_e2e_s": 2.0 if policy == "sa" else 1.0,
                            "output_tokens_per_s": 0.9 if policy == "sa" else 1.0,
                            "plan_ms_p50": 1.0, "preemptions": 0, "yields": 1,
                        }
                    )  # fmt: skip
    return found


def test_differences_are_to_the_best_rule_of_the_cell():
    cells = by_cell(lines(0.15))
    assert len(cells) == 6
    assert {best_rule(row) for row in cells.values()} == {"sjf"}
    mean, half, count, worst = mean_over(cells, "sa", lambda c: c.load > 1)
    assert (mean, count, worst) == (pytest.approx(15), 3, pytest.approx(15))
    assert half == pytest.approx(0, abs=1e-9)
    assert mean_over(cells, "sa", lambda c: c.load > 1, "fcfs")[0] == pytest.approx(25)
    assert mean_over(cells, "sa", lambda c: False)[2] == 0


def test_a_cell_below_a_rule_is_named_and_gpu_means_leave_tiny_out():
    cells = by_cell(lines(0.15))
    verdict, _, *named = losses(cells, "sa")
    assert verdict.startswith("sa: 1 of 6 cells")
    assert named == ["- oracle, shape-b, mixed, 0.8: -5.00 ± 0.00 to sjf (surely)"]
    heavy = means_table(cells, "sa")[2]
    assert "| 2 |" in heavy
    assert "+15.0 ± 0.0" in heavy
    assert "| 2.00 | 0.900 |" in heavy
    text = summary(lines(0.15), ["sa", "nobody"])
    assert "6 cells, 4 seeds" in text
    assert "nobody" not in text
