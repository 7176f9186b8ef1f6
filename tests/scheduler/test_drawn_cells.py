"""Cells drawn from a number: the same again, within their engine, and how they compare."""

from __future__ import annotations

import json
import os

import pytest

from benchmarks.simulator.drawn_cells import compared, drawn_cell, play, requests_of
from benchmarks.simulator.grid_tables import RULES

needs_traces = pytest.mark.skipif("LENGTHWISE_DATA" not in os.environ, reason="arrivals of traces")


@needs_traces
@pytest.mark.parametrize("number", range(6))
def test_a_cell_is_its_numbers_own_and_its_requests_fit(number):
    cell = drawn_cell(number)
    assert cell == drawn_cell(number)
    assert cell.profile != drawn_cell(number + 1).profile
    assert sum(c.share for c in cell.workload.classes) == pytest.approx(1.0)
    requests = requests_of(cell, 50, 2.0, 1)
    assert requests == requests_of(cell, 50, 2.0, 1)
    assert (
        max(r.prompt_tokens + r.output_tokens for r in requests) < cell.profile.capacity.kv_tokens
    )
    asked = {c.slo.slo_class for c in cell.workload.classes}
    assert {r.slo.slo_class for r in requests} <= asked


@needs_traces
def test_every_policy_plays_the_same_requests_and_each_line_can_be_written():
    lines = play((2, 0, "oracle", 40, ("fcfs", "sjf")))
    assert [line["policy"] for line in lines] == ["fcfs", "sjf"]
    assert all(0.0 <= line["attainment"] <= 1.0 and line["mean_e2e_s"] > 0 for line in lines)
    assert json.loads(json.dumps(lines)) == lines


def test_the_policy_is_compared_with_the_rule_that_is_best_over_the_draws():
    def line(policy, seed, met, cell=7):
        return {
            "cell": cell, "seed": seed, "lengths": "oracle", "policy": policy, "load": 1.5,
            "what": "", "attainment": met, "mean_e2e_s": 2.0, "output_tokens_per_s": 10.0,
        }  # fmt: skip

    lines = [line(rule, seed, 0.25) for rule in RULES if rule != "sjf" for seed in (0, 1)]
    lines += [line("sjf", 0, 0.5), line("sjf", 1, 0.25)]
    lines += [line("sa", 0, 0.5), line("sa", 1, 0.5)]
    (row,) = compared(
        [*lines, line("fcfs", 0, 0.5, cell=8)], "sa"
    )  # of the other, rules are missing
    assert (row["cell"], row["best_rule"]) == (7, "sjf")
    assert (row["met"], row["best"], row["gain"]) == (50.0, 37.5, 12.5)
    assert row["rules"]["fcfs"] == 25.0
