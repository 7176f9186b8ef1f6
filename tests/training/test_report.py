"""The page stands alone and shows what the files say."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.training.bench.engines.client import QueueSample
from lengthwise.training.bench.results.records import (
    RequestRecord,
    paired_difference,
    summarize_arm,
)
from lengthwise.training.bench.results.report import (
    arm_rows,
    headline,
    read_run,
    render,
    subline,
    warnings,
    write_run,
)
from lengthwise.training.bench.results.result import BenchResult
from lengthwise.training.cli.app import app


def records(share_met: float, seed: int, *, lost: int = 0, predicted: bool = False):
    rng = np.random.default_rng(seed)
    classes = (Slo(e2e_s=10.0, slo_class="code"), Slo(ttft_s=1.0, tpot_s=0.05, slo_class="chat"))
    rows = []
    for i in range(80):
        fast = rng.random() < share_met
        tokens = int(rng.integers(2, 400))
        ttft = 0.3 if fast else 12.0
        rows.append(
            RequestRecord(
                i % 40, i // 40, classes[i % 2], i * 0.1, i * 0.1, 12, tokens,
                output_tokens=0 if i < lost else tokens,
                ttft_s=None if i < lost else ttft,
                e2e_s=None if i < lost else ttft + tokens * 0.01,
                error="HTTP 500" if i < lost else None,
                predicted_tokens=float(tokens) * 1.2 if predicted else None,
            )
        )  # fmt: skip
    return rows


@pytest.fixture(scope="module")
def run():
    by_arm = {"stock": records(0.4, 1, lost=3), "sa:learned": records(0.9, 2, predicted=True)}
    arms = [
        summarize_arm("stock", "none", by_arm["stock"]),
        summarize_arm("sa", "learned", by_arm["sa:learned"], plan_ms_p50=0.4, plan_ms_p99=0.9),
    ]
    result = BenchResult(
        provenance="measured",
        workload="paper",
        load=1.5,
        predictor="models:/output-length/1",
        source_label="synthetic",
        arms=arms,
        run={"stamp": "2026-01-01T00:00:00Z", "machine": {"cores": 2, "processor": "<b>x</b>"}},
        diagnostics={
            "stock": {"max_queue": 9, "send_lag_ms_p99": 3.0, "length_mismatches": 0},
            "sa:learned": {"max_queue": 7, "send_lag_ms_p99": 900.0, "length_mismatches": 2},
        },
        against_base={"sa:learned": paired_difference(by_arm["sa:learned"], by_arm["stock"])},
    )
    queue = {
        label: [(k, QueueSample(float(t), t % 9, 4)) for k in (0, 1) for t in range(10)]
        for label in by_arm
    }
    return result, by_arm, queue


@pytest.fixture(scope="module")
def html(run):
    return render(*run)


class Tags(HTMLParser):
    """Collects what a browser would fetch, and checks that tags close in order."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not str(value).startswith("#"):
                self.fetched.append(str(value))
            if name == "id":
                self.ids.append(str(value))

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_complete_and_fetches_nothing(html):
    page = Tags()
    page.feed(html)
    assert page.open == []
    assert page.fetched == []
    assert "<script" not in html
    assert html.count("<svg") == 5
    # an id in two figures would make one use the other's clip path
    assert len(page.ids) == len(set(page.ids))
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)


def test_the_page_shows_the_result_and_where_it_comes_from(run, html):
    result = run[0]
    assert f"{100 * result.arms[1].attainment:.1f} %" in html
    assert "3 / 80" in html
    assert "models:/output-length/1" in html
    assert "synthetic data" in html
    assert "e2e ≤ 10 s" in html
    assert "TTFT ≤ 1 s, TPOT ≤ 50 ms" in html
    assert "<b>x</b>" not in html


def test_headline_names_the_best_arm_and_the_base(run):
    result = run[0]
    assert headline(result).startswith("sa:learned met the SLO of")
    assert "points" in subline(result)
    alone = result.model_copy(update={"arms": result.arms[:1]})
    assert headline(alone).startswith("stock met the SLO of")
    assert subline(alone) is None


def test_what_casts_doubt_is_said(run, html):
    assert [w.split(":")[0] for w in warnings(run[0])[:1]] == ["sa"]
    assert len(warnings(run[0])) == 2
    assert "900 ms late" in html
    assert "2 answers did not have" in html


def test_a_run_can_be_read_back(run, html, tmp_path):
    page = write_run(tmp_path / "run", *run)
    result, by_arm, queue = read_run(tmp_path / "run")
    assert result == run[0]
    assert by_arm == run[1]
    assert queue == run[2]
    assert page.read_text(encoding="utf-8") == html
    with pytest.raises(InputError, match="cannot read"):
        read_run(tmp_path)


def test_a_page_without_queue_predictions_or_answers(run):
    result, _by_arm, _ = run
    all_lost = {"stock": records(0.0, 3, lost=80)}
    arms = [result.arms[0].model_validate(summarize_arm("stock", "none", all_lost["stock"]))]
    bare = result.model_copy(update={"arms": arms, "diagnostics": {}, "against_base": {}})
    assert render(bare, all_lost, {}).count("<svg") == 3


def test_the_terminal_table_has_units(run):
    row = arm_rows(run[0].arms)[1]
    assert row["arm"] == "sa:learned"
    assert row["code"].endswith(" %")
    assert row["plan p99"] == "0.90 ms"
    assert arm_rows(run[0].arms)[0]["plan p99"] == "–"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["a", "--arm", "x"], "--arm x: is compared over several runs, got one"),
        (["a", "b", "--out", "x"], "--out x: is the report of one run, got several"),
        (["a", "b", "./a"], "a run counts once, got 'a' twice"),
    ],
)
def test_options_that_would_do_nothing_and_a_run_given_twice_are_refused(words, says, tmp_path):
    """The same run twice is no more evidence than once."""
    done = CliRunner().invoke(app, ["report", *words])
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr
