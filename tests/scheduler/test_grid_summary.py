"""The grid's tables from results whose outcome is known."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.simulator.grid_tables import Means, by_cell, difference_table, kept_table, summary

# attainment by policy and lengths; the seed moves all alike, so paired differences are certain
LEVEL = {
    ("fcfs", "class"): 0.5,
    ("bound", "class"): 0.9,
    ("sjf", "class"): 0.6,
    ("sjf", "learned"): 0.65,
    ("sjf", "oracle"): 0.7,
    ("sa", "class"): 0.7,
    ("sa", "learned"): 0.75,
    ("sa", "oracle"): 0.8,
}


def lines(better_at_2: float = 0.0, seeds: int = 4) -> list[dict]:
    """Two loads; ``sjf`` with learned lengths gains ``better_at_2`` at load 2."""
    found = []
    for (policy, lengths), level in LEVEL.items():
        for load in (1.4, 2.0):
            for seed in range(seeds):
                more = better_at_2 if (policy, lengths, load) == ("sjf", "learned", 2.0) else 0.0
                line = {"policy": policy, "lengths": lengths, "workload": "paper", "load": load}
                line |= {"arrivals": "poisson", "seed": seed, "requests": 10}
                line |= {"key": str((policy, lengths, load, seed)), "cpu_s": 1.0}
                line["attainment"] = level + more + 0.01 * seed
                if policy != "bound":
                    line |= {"mean_e2e_s": 1.0, "output_tokens_per_s": 1.0, "max_wait_s": 1.0}
                found.append(line)
    return found


def test_the_gap_is_measured_from_the_best_single_rule_to_the_bound():
    means = Means(by_cell(lines()), "learned", 0.9)
    everyone = np.arange(4)
    assert means.best_rule() == "sjf"
    assert means.closed(everyone) == pytest.approx((0.75 - 0.65) / (0.9 - 0.65))
    assert means.of_bound(everyone) == pytest.approx(0.765 / 0.915)


def test_a_cell_surely_below_a_rule_is_named():
    assert difference_table(by_cell(lines()))[0].startswith("Cells in which")
    assert ": 0 of 6" in difference_table(by_cell(lines()))[0]
    verdict, _, named, *_ = difference_table(by_cell(lines(better_at_2=0.2)))
    assert ": 1 of 6" in verdict
    assert named.startswith("- learned, paper, poisson, 2: -10.00")


def test_learned_lengths_keep_half_of_what_oracle_lengths_gain():
    heavy = kept_table(by_cell(lines()))[2]
    assert "| 0.50 (0.50 to 0.50) |" in heavy


def test_a_half_finished_grid_has_a_summary():
    text = summary([line for line in lines() if line["seed"] < 2 or line["policy"] == "fcfs"])
    assert "### The gap to the bound" in text
    assert "no run of sa" in summary([line for line in lines() if line["policy"] != "sa"])
