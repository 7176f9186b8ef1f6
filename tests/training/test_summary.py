"""Outcomes computed by hand, and the shape of the result document."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.training.bench.results.records import (
    RequestRecord,
    attainment_interval,
    loaded_tokens_per_s,
    measured_duration_s,
    paired_difference,
    summarize_arm,
)
from lengthwise.training.bench.results.result import BenchResult, read_result

CHAT = Slo(ttft_s=1.0, tpot_s=0.1, slo_class="chat")
CODE = Slo(e2e_s=10.0, slo_class="code")


def record(index=0, slo=CODE, send=0.0, ttft=0.5, e2e=4.0, n=11, repeat=0, **kwargs):
    return RequestRecord(
        index, repeat, slo, send, send, 10, n, output_tokens=n, ttft_s=ttft, e2e_s=e2e, **kwargs
    )


def lost(index=0, slo=CODE, repeat=0):
    return RequestRecord(index, repeat, slo, 0.0, 0.0, 10, 11, error="HTTP 500")


def test_tpot_is_over_the_tokens_after_the_first():
    assert record(ttft=1.0, e2e=3.0, n=11).tpot_s == pytest.approx(0.2)
    assert record(ttft=1.0, e2e=1.0, n=1).tpot_s == 0.0
    assert lost().tpot_s is None


@pytest.mark.parametrize(
    ("ttft", "e2e", "met"),
    [(0.9, 1.8, True), (1.1, 1.8, False), (0.9, 2.1, False)],
)
def test_all_objectives_must_hold(ttft, e2e, met):
    assert record(slo=CHAT, ttft=ttft, e2e=e2e, n=11).met is met


def test_lost_requests_have_not_attained_even_without_objectives():
    assert not lost(slo=Slo()).met
    assert record(slo=Slo()).met


def test_an_arm_by_hand():
    rows = [
        record(0, send=0.0, ttft=1.0, e2e=4.0, n=10),
        record(1, send=1.0, ttft=2.0, e2e=11.0, n=20),
        record(2, slo=CHAT, send=2.0, ttft=0.5, e2e=1.0, n=6),
        lost(3, slo=CHAT),
    ]
    arm = summarize_arm("sa", "learned", rows, plan_ms_p50=0.5, plan_ms_p99=1.0)
    assert arm["requests"] == 4
    assert arm["lost"] == 1
    assert arm["attainment"] == 0.5
    assert arm["mean_e2e_s"] == pytest.approx(16 / 3)
    assert arm["mean_ttft_s"] == pytest.approx(3.5 / 3)
    assert arm["max_wait_s"] == 2.0
    # first send at 0, last answer at 12
    assert measured_duration_s(rows) == 12.0
    assert arm["goodput_rps"] == pytest.approx(2 / 12)
    assert arm["output_tokens_per_s"] == pytest.approx(36 / 12)
    assert arm["g_per_s"] == pytest.approx(2 / 16)
    assert arm["per_class"]["code"]["attainment"] == 0.5
    assert arm["per_class"]["chat"]["lost"] == 1


def test_an_arm_that_lost_everything_still_makes_a_document():
    arm = summarize_arm("sa", "none", [lost(0), lost(1)])
    assert arm["attainment"] == 0.0
    assert arm["mean_e2e_s"] is None
    document = BenchResult(
        provenance="measured", workload="w", load=1.5, predictor=None, source_label="x", arms=[arm]
    )
    assert json.loads(document.to_line())["arms"][0]["lost"] == 2


def test_durations_add_over_repeats():
    rows = [record(0, e2e=4.0), record(0, repeat=1, e2e=6.0)]
    assert measured_duration_s(rows) == 10.0


def test_loaded_throughput_counts_only_until_the_last_send():
    rows = [
        record(0, send=0.0, ttft=0.0, e2e=10.0, n=101),
        record(1, send=5.0, ttft=1.0, e2e=2.0, n=50),
    ]
    # half of the first's tokens fall before 5 s; the second starts after
    assert loaded_tokens_per_s(rows) == pytest.approx(51 / 5)


def test_interval_covers_and_is_wider_when_outcomes_come_in_runs():
    rng = np.random.default_rng(3)
    scattered = rng.random(400) < 0.6
    runs = np.repeat(rng.random(20) < 0.6, 20)
    low, high = attainment_interval([scattered])
    assert low < scattered.mean() < high
    wide = attainment_interval([runs])
    assert wide[1] - wide[0] > 1.5 * (high - low)


def test_interval_matches_the_binomial_for_independent_outcomes():
    hits = np.random.default_rng(1).random(900) < 0.5
    low, high = attainment_interval([hits[:450], hits[450:]])
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 900), rel=0.35)


def test_interval_of_unanimous_outcomes_is_not_a_point():
    low, high = attainment_interval([np.ones(50)])
    assert high == 1.0
    assert low == pytest.approx(0.025 ** (1 / 50))


def test_interval_is_seeded_and_empty_without_records():
    hits = [np.random.default_rng(2).random(100) < 0.3]
    assert attainment_interval(hits, seed=5) == attainment_interval(hits, seed=5)
    assert attainment_interval([]) is None


def test_paired_difference_is_narrower_than_the_arms_when_they_share_their_luck():
    luck = np.random.default_rng(0).random(300)
    base = [record(i, send=float(i), e2e=5.0 if u < 0.5 else 20.0) for i, u in enumerate(luck)]
    ours = [record(i, send=float(i), e2e=5.0 if u < 0.6 else 20.0) for i, u in enumerate(luck)]
    paired = paired_difference(ours, base)
    low, high = paired["difference_ci95"]
    assert paired["attainment_difference"] == pytest.approx(np.mean((luck >= 0.5) & (luck < 0.6)))
    assert 0 < low < high
    with pytest.raises(ValueError, match="same requests"):
        paired_difference(ours[1:], base)


def test_result_files_are_checked(tmp_path):
    arm = summarize_arm("stock", "none", [record()])
    result = BenchResult(
        provenance="modeled", workload="w", load=None, predictor=None, source_label="x", arms=[arm]
    )
    path = tmp_path / "result.json"
    path.write_text(result.to_line())
    assert read_result(path) == result
    assert result.arms[0].label == "stock"
    broken = json.loads(result.to_line())
    broken["arms"][0]["attainment"] = 1.5
    path.write_text(json.dumps(broken))
    with pytest.raises(InputError, match=r"arms\.0\.attainment"):
        read_result(path)
    with pytest.raises(InputError, match="cannot read"):
        read_result(tmp_path / "absent.json")
