"""Variants beside the whole planner: known lines give known differences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.engine import warped
from benchmarks.simulator.planner import ablation, clairvoyant_share, front
from benchmarks.simulator.planner.variants_table import (
    axis_table,
    figures,
    main_table,
    pairs,
    undominated,
)
from benchmarks.simulator.shapes import policy_of
from benchmarks.simulator.wrong_input import bad_input, misled, trust_return
from lengthwise.scheduler.policies.policy import Learns
from lengthwise.scheduler.problem import warm_up_problem

VARIANTS = {"no search": "sa:iterations=0", "dear time": "sa:latency_price=0.4"}


def lines() -> list[dict]:
    """Without search 4 points less on GPU shapes under load, dear time a point less and faster."""
    found = []
    for shape, workload in (("shape-a", "mixed"), ("shape-b", "paper"), ("tiny-cpu", "mixed")):
        for load in (0.8, 1.6):
            for seed in range(3):
                heavy = shape != "tiny-cpu" and load > 1
                level = 0.8 + 0.01 * seed
                for policy, met, e2e_s, lengths in (
                    ("fcfs", 0.5, 4.0, "any"),
                    ("sa", level, 2.0, "oracle"),
                    ("sa:iterations=0", level - 0.04 * heavy, 2.0, "oracle"),
                    ("sa:latency_price=0.4", level - 0.01, 1.0, "oracle"),
                ):
                    found.append(
                        {
                            "policy": policy, "shape": shape, "workload": workload, "load": load,
                            "lengths": lengths, "seed": seed, "attainment": met,
                            "mean_e2e_s": e2e_s, "output_tokens_per_s": 0.9, "max_wait_s": 60.0,
                        }
                    )  # fmt: skip
    return found


def test_pairs_are_of_the_same_cell_and_seed():
    own = pairs(lines(), "sa:iterations=0", "sa")
    assert len(own) == 3 * 2 * 3
    assert {round(pair.points, 6) for pair in own} == {0.0, -4.0}
    missing = [line for line in lines() if line["policy"] != "sa" or line["seed"] != 1]
    assert {pair.seed for pair in pairs(missing, "sa:iterations=0", "sa")} == {0, 2}
    without = [line for line in lines() if line["policy"] != "fcfs"]
    assert np.isnan(pairs(without, "sa:iterations=0", "sa")[0].ratio("mean_e2e_s"))


def test_figures_by_zone():
    rows = {(row["zone"], row["variant"]): row for row in figures(lines(), VARIANTS, "sa")}
    heavy = rows["GPU, load ≥ 1.1", "no search"]
    assert heavy["points"] == (pytest.approx(-4.0), pytest.approx(0.0, abs=1e-9))
    assert (heavy["cells"], heavy["pairs"], heavy["worse"], heavy["better"]) == (2, 6, 2, 0)
    assert heavy["e2e"] == pytest.approx(0.5)
    assert rows["GPU, load ≤ 0.8", "no search"]["points"][0] == pytest.approx(0.0)
    assert rows["tiny-cpu", "no search"]["cells"] == 2
    assert rows["GPU, load ≥ 1.1", "whole"]["attainment"] == pytest.approx(0.81)


def test_a_variant_that_was_not_played_has_no_row():
    played = [line for line in lines() if line["policy"] != "sa:iterations=0"]
    assert {row["variant"] for row in figures(played, VARIANTS, "sa")} == {"whole", "dear time"}
    assert "no search" not in axis_table(played, VARIANTS, "sa", "shape")[0]


def test_the_tables_say_it():
    text = "\n".join(main_table(figures(lines(), VARIANTS, "sa")))
    assert "| no search | 77.0 | -4.00 ± 0.00 | -4.0 to -4.0 | 2, 0 of 2 | 0.50 |" in text
    head, _, first, second, third = axis_table(lines(), VARIANTS, "sa", "shape")
    assert head == "| shape | no search | dear time |"
    assert first == "| shape-a | -4.00 ± 0.00 | -1.00 ± 0.00 |"
    assert second == "| shape-b | -4.00 ± 0.00 | -1.00 ± 0.00 |"
    assert third.startswith("| tiny-cpu | +0.00")


def test_the_front_is_what_nothing_beats_twice():
    rows = figures(lines(), VARIANTS, "sa")
    assert undominated(rows, "GPU, load ≥ 1.1") == ["whole", "dear time"]


def test_every_variant_is_a_policy():
    prices = front.variants(front.LATENCY_PRICES, front.TOKENS_PRICES)
    for spec in [*ablation.VARIANTS.values(), *prices.values()]:
        assert policy_of(spec, 0).name == "sa"


# -- the tables of the other studies ----------------------------------------------------------


def test_bad_input_says_what_fails_and_by_how_much():
    def line(seed: int, met: float, over_s: float) -> dict:
        arms = {
            "fcfs": {"attainment": 0.5, "over_s": 1.0, "mean_e2e_s": 2.0, "unserved": 0},
            "arm": {"attainment": met, "over_s": over_s, "mean_e2e_s": 1.0, "unserved": 0},
        }
        names = {"shape": "s", "workload": "w", "case": "c", "seed": seed}
        return names | arms | {"failures": bad_input.failures(arms["arm"], arms["fcfs"])}

    (row,) = bad_input.rows_of([line(0, 0.6, 1.2), line(1, 0.4, 4.0)])
    assert row[:4] == ["s", "w", "c", 2]
    assert row[7] == "-10.0"
    assert row[8:11] == ["1.0", "4.0", "+3.0"]
    assert row[-1] == "attainment 1, wait 1"


def test_the_share_of_the_best_known():
    line = {
        "shape": "shape-x", "workload": "w", "load": 1.2, "bound": 1.0, "sa": 0.6,
        "rules": {"fcfs": 0.2, "sjf": 0.4}, "sa_told": 0.7, "whole_rollout": 0.9, "whole": 0.8,
    }  # fmt: skip
    assert clairvoyant_share.best_known(line) == 0.8  # what its own rollout says does not count
    row = clairvoyant_share.row_of(line)
    assert row[5] == "40.0 (sjf)"
    assert row[-1] == "0.75"
    assert len(row) == len(clairvoyant_share.HEAD)


def test_how_long_a_part_was_away():
    watch = trust_return.Watch()
    for now_s in range(10):
        watch.plans.append((float(now_s), frozenset({"limits"} if 2 <= now_s < 6 else ())))
    assert watch.away("limits", 0.0, 5.0) == pytest.approx(0.6)
    assert watch.away("limits", 5.0, 9.0) == pytest.approx(0.25)
    assert watch.away("order", 0.0, 9.0) == 0.0
    assert watch.back_s("limits", 3.0) == 2.0
    assert watch.back_s("limits", 7.0) == 0.0


def test_warped_and_simulated_are_compared_run_by_run():
    def line(policy: str, real: float, modeled: float, valid: bool = True) -> dict:
        same = {"mean_ttft_s": 1.0, "mean_e2e_s": 2.0, "prefill_tokens": 3, "preemptions": 4}
        return {
            "shape": "s", "workload": "w", "load": 1.2, "policy": policy, "seed": 0,
            "warped": same | {"attainment": real, "valid": valid, "step_ratio": 1.1, "plans": 5},
            "simulated": same | {"attainment": modeled, "plans": 6},
        }  # fmt: skip

    near = [line("stock", 0.3, 0.31), line("sa", 0.8, 0.82)]
    told = warped.verdict(near)
    assert (told["beyond"], told["reversals"], told["invalid"]) == (0, [], 0)
    assert told["mean_absolute_gap"] == pytest.approx(1.5)
    told = warped.verdict([*near, line("sjf", 0.2, 0.6)])
    assert told["beyond"] == 1
    assert told["reversals"] == ["- s, w, 1.2: stock less sjf is +10.0, -29.0"]
    assert warped.verdict([*near, line("sjf", 0.2, 0.6, False)])["invalid"] == 1
    row = warped.rows_of([line("sjf", 0.2, 0.6, False)])[0]
    assert row[4:8] == ["20.0", "60.0", "-40.0", "1.00"]
    assert row[-1] == "INVALID, steps 1.100"
    assert len(row) == len(warped.HEAD)


def test_who_is_misled_learns_what_came():
    """The simulator tells outcomes to what learns, and knows that by its methods."""
    policy = policy_of("sa", 0)
    wrong = misled.Misled(policy, misled.lengths(10.0), 1.0)
    assert isinstance(wrong, Learns)
    wrong.finished(0.0, True)
    assert wrong.status() == policy.status()
    problem = replace(warm_up_problem(), now_s=0.5)
    told = misled.lengths(10.0)(problem)
    assert (told.waiting.quantiles == 10.0 * problem.waiting.quantiles).all()
    slow = misled.steps(3.0)(problem).step_time
    assert slow.step_s(5, 2, 30) == pytest.approx(3.0 * problem.step_time.step_s(5, 2, 30))
    dear = misled.step_part("decode_seq_s", 3.0)(problem).step_time
    assert dear == replace(problem.step_time, decode_seq_s=3.0 * problem.step_time.decode_seq_s)
