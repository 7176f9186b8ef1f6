from __future__ import annotations

import pytest

from lengthwise.scheduler.vllm_adapter.emulated.emulated_steps import (
    EmulatedStepLog,
    StepRow,
    read_emulated_steps,
    summarize_steps,
)


def row(profile_s, taken_s, late=False):
    return StepRow(1.0, profile_s, taken_s, 0, 3, 90, late)


def test_the_ratio_leaves_steps_after_a_rest_out():
    rows = [row(0.01, None), row(0.01, 0.01), row(0.03, 0.0306)]
    summary = summarize_steps(rows)
    assert summary.steps == 3
    assert summary.step_ratio == pytest.approx(0.0406 / 0.04)
    assert summary.over_5_percent == 0.0
    assert summary.valid


def test_a_slow_host_makes_a_run_invalid():
    summary = summarize_steps([row(0.01, 0.01), row(0.01, 0.0105), row(0.01, 0.0107, late=True)])
    assert summary.step_ratio == pytest.approx(1.04)
    assert (summary.late_steps, summary.over_5_percent) == (1, pytest.approx(1 / 3))
    assert not summary.valid


def test_without_a_busy_step_there_is_no_ratio():
    assert summarize_steps([row(0.01, None)]).step_ratio is None
    assert summarize_steps([]).valid


def test_the_log_reads_back_and_a_half_written_line_is_left_out(tmp_path):
    path = tmp_path / "logs" / "steps.jsonl"
    log = EmulatedStepLog(path)
    rows = [row(0.01, None), row(0.02, 0.021, late=True)]
    for one in rows:
        log.write(one)
    log.close()
    assert read_emulated_steps(path) == rows
    assert read_emulated_steps(path, skip=1) == rows[1:]
    with path.open("a") as file:
        file.write("[1.0, 0.0")
    assert read_emulated_steps(path) == rows
