from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lengthwise.data.arena.sessions import Sessions, SystemPrompt
from lengthwise.data.arena.workloads import (
    ARENA,
    arena_workload,
    build_workload,
)
from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import load_table
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table

SHARES = {
    "paper": {"code": 0.5, "chat": 0.5},
    "mixed": {"chat": 0.45, "code": 0.30, "agent_step": 0.15, "reasoning": 0.10},
    "tails": {"reasoning": 0.7, "chat": 0.3},
    "agents": {"agent_step": 0.65, "chat": 0.35},
    "documents": {"agent_step": 0.5, "chat": 0.25, "reasoning": 0.25},
    "tight": {"chat": 0.45, "code": 0.30, "agent_step": 0.15, "reasoning": 0.10},
    "mixed-long": {"chat": 0.45, "code": 0.30, "agent_step": 0.15, "reasoning": 0.10},
}


@pytest.fixture(scope="module")
def table():
    return synthetic_table(rows=1500)


def objectives(name):
    return {c.slo.slo_class: c.slo for c in arena_workload(name).classes}


@pytest.mark.parametrize("name", ARENA)
def test_classes_come_in_their_shares_with_their_objectives(name, table):
    requests = build_workload(name, table, 200, 3.0, seed=1)
    counts = Counter(r.slo.slo_class for r in requests)
    assert counts == {c: round(200 * share) for c, share in SHARES[name].items()}
    slos = objectives(name)
    assert all(r.slo == slos[r.slo.slo_class] for r in requests)
    assert requests == sorted(requests, key=lambda r: r.arrival_s)
    assert requests[0].arrival_s == 0


def test_objectives_are_those_of_the_design():
    paper, mixed, tails = (objectives(name) for name in ("paper", "mixed", "tails"))
    assert (paper["code"].e2e_s, paper["chat"].ttft_s, paper["chat"].tpot_s) == (30, 10, 0.05)
    assert (mixed["chat"].ttft_s, mixed["chat"].tpot_s, mixed["code"].e2e_s) == (3, 0.05, 20)
    assert (mixed["agent_step"].e2e_s, mixed["reasoning"].e2e_s) == (4, 90)
    assert (tails["reasoning"].e2e_s, tails["chat"].ttft_s, tails["chat"].tpot_s) == (60, 5, None)


def test_agents_take_turns_on_shared_system_prompts(table):
    requests = build_workload("agents", table, 1500, 3.0, seed=1)
    tokens = {r.prefix: r.prefix_tokens for r in requests}
    assert len(tokens) == 6
    assert all(1500 <= n <= 4000 for n in tokens.values())
    sessions = Counter(r.session for r in requests)
    assert 1500 / len(sessions) > 3  # turns seen of a session, the first and last cut off
    assert {(r.session, r.prefix) for r in requests if r.session == requests[0].session} == {
        (requests[0].session, requests[0].prefix)
    }
    for r in requests:
        assert r.prefix_tokens + r.text_tokens <= r.prompt_tokens
        assert r.prompt_tokens <= r.prefix_tokens + r.text_tokens + 2000
    early, late = (np.mean([r.prompt_tokens for r in part])
                   for part in (requests[:500], requests[1000:]))  # fmt: skip
    assert early == pytest.approx(late, rel=0.1)


def test_a_session_grows_until_it_ends(table):
    rng = np.random.default_rng(0)
    prompts = (SystemPrompt("a", 100, 1.0), SystemPrompt("b", 300, 3.0))
    turns = Sessions(prompts, live=4, mean_turns=5.0, most_history_tokens=90).turns(
        [10] * 400, [7] * 400, rng
    )
    shares = Counter(t.system_prompt.prefix for t in turns)
    assert 0.5 < shares["b"] / 400 < 0.95
    for name in {t.session for t in turns}:
        own = [t.prompt_tokens - t.system_prompt.prefix_tokens for t in turns if t.session == name]
        assert own == sorted(own)
        assert max(own) <= 90 + 10
        if not own[0] > 10:  # began within the run
            assert own == [min(17 * i, 90) + 10 for i in range(len(own))]


def test_documents_stand_before_the_question(table):
    requests = build_workload("documents", table, 400, 3.0, seed=1)
    assert min(r.prompt_tokens for r in requests) >= 2000
    assert max(r.prompt_tokens for r in requests) <= 16_000
    assert 6000 < np.mean([r.prompt_tokens for r in requests]) < 7500
    assert all(r.text_tokens < r.prompt_tokens for r in requests)
    assert np.mean([r.output_tokens for r in requests]) < 300


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
