from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lengthwise.data.arena.workloads import (
    ARENA,
    arena_slo_table,
    arena_workload,
    build_workload,
    mean_work,
)
from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import load_table
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table

SHARES = {
    "paper": {"code": 0.5, "chat": 0.5},
    "mixed": {"chat": 0.45, "code": 0.30, "agent_step": 0.15, "reasoning": 0.10},
    "tails": {"reasoning": 0.7, "chat": 0.3},
}


@pytest.fixture(scope="module")
def table():
    return synthetic_table(rows=1500)


@pytest.mark.parametrize("name", ARENA)
def test_classes_come_in_their_shares_with_their_objectives(name, table):
    requests = build_workload(name, table, 200, 3.0, seed=1)
    counts = Counter(r.slo.slo_class for r in requests)
    assert counts == {c: round(200 * share) for c, share in SHARES[name].items()}
    slos = arena_slo_table(name)
    assert all(r.slo == slos[r.slo.slo_class] for r in requests)
    assert requests == sorted(requests, key=lambda r: r.arrival_s)
    assert requests[0].arrival_s == 0


def test_objectives_are_those_of_the_design():
    paper, mixed, tails = (arena_slo_table(name) for name in ("paper", "mixed", "tails"))
    assert (paper["code"].e2e_s, paper["chat"].ttft_s, paper["chat"].tpot_s) == (30, 10, 0.05)
    assert (mixed["chat"].ttft_s, mixed["chat"].tpot_s, mixed["code"].e2e_s) == (3, 0.05, 20)
    assert (mixed["agent_step"].e2e_s, mixed["reasoning"].e2e_s) == (4, 90)
    assert (tails["reasoning"].e2e_s, tails["chat"].ttft_s, tails["chat"].tpot_s) == (60, 5, None)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 101])
def test_any_number_of_requests_is_given_exactly(n, table):
    assert len(build_workload("mixed", table, n, 2.0, seed=0)) == n


def test_prompts_come_from_the_test_side_only(table):
    sides = split_table(table)
    drawn = {r.prompt for r in build_workload("mixed", table, 400, 3.0, seed=2)}
    assert drawn <= set(sides["test"]["prompt"])
    assert not drawn & set(sides["train"]["prompt"])
    assert not drawn & set(sides["calibration"]["prompt"])


def test_no_row_comes_twice_while_rows_last(packs):
    table = load_table("gpt35")
    rows = int((split_table(table)["test"]["slo_class"] == "chat").sum())
    drawn = [r.prompt for r in build_workload("tails", table, 10 * rows, 3.0, seed=0, split=None)]
    chat = [p for p in drawn if int(p.split()[1]) % 4 == 0]
    counts = Counter(chat)
    assert max(counts.values()) - min(counts.get(f"question {i}", 0) for i in range(0, 200, 4)) <= 1


def test_seed_decides_everything(table):
    first, again, other = (build_workload("paper", table, 50, 3.0, seed=s) for s in (4, 4, 5))
    assert first == again
    assert first != other


def test_gamma_is_burstier_than_poisson(table):
    def cv(kind):
        times = [r.arrival_s for r in build_workload("paper", table, 2000, 3.0, 0, arrivals=kind)]
        return np.diff(times).std() / np.diff(times).mean()

    assert cv("poisson") == pytest.approx(1.0, abs=0.15)
    assert cv("gamma") > 2


def test_mean_work_weighs_by_share(packs):
    table = load_table("gpt35")
    means = table.groupby("slo_class")["output_tokens"].mean()
    expected = 0.45 * means["chat"] + 0.3 * means["code"]
    expected += 0.15 * means["agent_step"] + 0.1 * means["reasoning"]
    assert mean_work("mixed", table, split=None)[1] == pytest.approx(expected)


def test_a_missing_class_is_named(packs):
    table = load_table("gpt35")
    without = table[table["slo_class"] != "code"].reset_index(drop=True)
    without.attrs = table.attrs
    with pytest.raises(InputError, match=r"needs class 'code', but gpt35 \(test split\) has only"):
        build_workload("paper", without, 10, 1.0, seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "papper"}, "no arena workload 'papper'; known: paper, mixed, tails"),
        ({"arrivals": "uniform"}, "arrivals must be one of"),
        ({"split": "tset"}, "split must be one of"),
        ({"n": 0}, "n must be at least 1"),
        ({"rate_rps": 0.0}, "rate_rps must be positive"),
        ({"arrivals": "azure"}, "lengthwise data fetch azure2023"),
    ],
)
def test_bad_arguments(changes, message, table):
    arguments = {"name": "paper", "table": table, "n": 5, "rate_rps": 1.0, "seed": 0} | changes
    with pytest.raises(InputError, match=message):
        build_workload(**arguments)


def test_default_source_is_the_pack_where_it_is(packs):
    assert arena_workload("paper").default_source == "gpt35"
    assert arena_workload("tails").default_source == "synthetic"


def test_azure_bursts_on_real_data(real_data):
    requests = build_workload("paper", load_table("gpt35"), 3000, 5.0, seed=0, arrivals="azure")
    times = np.array([r.arrival_s for r in requests])
    assert times[-1] == pytest.approx(2999 / 5.0)
    assert np.diff(times).std() / np.diff(times).mean() > 1.2
