"""Step timer, length priors, outcomes, request table."""

from __future__ import annotations

import json
import time
from concurrent.futures import wait
from dataclasses import replace
from unittest.mock import Mock

import numpy as np
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.scheduler.problem import Capacity
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.api.predicting.batching import _round_for_log
from lengthwise.scheduler.serving.engine.observed.refit import StepTimeRefit, better_model
from lengthwise.scheduler.serving.engine.observed.sequence_outcome import Outcome
from lengthwise.scheduler.serving.engine.observed.steps import StepTimer, TokensPerStep
from lengthwise.scheduler.serving.engine.requests.request_table import RequestTable, Tracked
from lengthwise.scheduler.serving.priors import generic_priors, load_priors
from lengthwise.scheduler.serving.step_log import read_step_log
from lengthwise.scheduler.serving.wire.answer_length import check_quantiles
from lengthwise.scheduler.step_anchor import Anchor
from lengthwise.scheduler.step_fit import model_error
from lengthwise.scheduler.step_time import StepTimeModel


def test_a_busy_engine_times_steps_end_to_end_and_an_idle_one_from_planning():
    timer = StepTimer()
    timer.begin((10, 0, 0), 1.0)
    assert timer.end(1.5, 0, 1, 0) == pytest.approx(0.5)
    timer.begin((0, 1, 11), 1.501)  # planned 1 ms after the last end: busy
    assert timer.end(1.7, 0, 1, 0) == pytest.approx(0.2)
    timer.begin((0, 1, 12), 9.0)  # after an idle time
    assert timer.end(9.1, 0, 1, 0) == pytest.approx(0.1)


def test_overlapping_steps_are_not_counted_twice():
    timer = StepTimer()
    timer.begin((10, 0, 0), 0.0)
    timer.begin((0, 1, 11), 0.1)  # planned while the first runs
    assert timer.end(1.0, 0, 1, 0) == pytest.approx(1.0)
    assert timer.end(1.3, 0, 1, 0) == pytest.approx(0.3)
    assert timer.samples()[:, 0].tolist() == [10, 0]


def test_the_device_is_free_when_all_that_was_planned_for_it_is_done():
    model = StepTimeModel(0.1, 0.0, 0.01, 0.0, 0.0)  # a tenth, and a hundredth a prompt token
    timer = StepTimer()
    assert timer.ends_s(model, 3.0).size == 0
    timer.begin((90, 0, 0), 3.0)
    assert timer.ends_s(model, 3.0) == pytest.approx([4.0])
    timer.begin((0, 1, 90), 3.2)  # planned while the first runs
    assert timer.ends_s(model, 3.2) == pytest.approx([4.0, 4.1])
    assert timer.ends_s(model, 5.0) == pytest.approx([5.0, 5.0])  # slower than the model says
    timer.end(4.0, 0, 1, 0)
    assert timer.ends_s(model, 4.0) == pytest.approx([4.1])
    for _ in range(50):  # none of which is ever said to end
        timer.begin((0, 1, 91), 4.0)
    assert timer.ends_s(model, 4.0) == pytest.approx([4.1, 4.2, 4.3, 4.4])


def test_tokens_a_step_follow_what_speculation_yields():
    assert TokensPerStep().mean == 1.0
    speed = TokensPerStep(draft_tokens=3)
    assert speed.mean == 1.0
    for _ in range(50):
        speed.note(250, 100)
    assert speed.mean == pytest.approx(2.5)
    for _ in range(400):
        speed.note(150, 100)
    assert speed.mean == pytest.approx(1.5, abs=0.01)
    speed.note(0, 0)
    for _ in range(400):
        speed.note(900, 100)  # more than there were drafts for
    assert speed.mean == 4.0


def test_the_step_log_can_be_switched_and_read_back(tmp_path):
    timer = StepTimer(log_path=str(tmp_path / "deep" / "steps.jsonl"))
    timer.begin((3, 2, 40), 0.0)
    timer.end(0.25, 100.0, 5, 6)
    timer.set_log(None)
    timer.begin((1, 1, 1), 0.3)
    timer.end(0.4, 101.0, 1, 1)
    rows = read_step_log(tmp_path / "deep" / "steps.jsonl")
    assert rows.tolist() == [[100.0, 3, 2, 40, 0.25, 5, 6]]


def test_a_refit_is_adopted_only_when_it_errs_less():
    truth = StepTimeModel(2e-3, 1e-3, 2e-5, 3e-4, 1e-8)
    rng = np.random.default_rng(0)
    timer, now = StepTimer(), 0.0
    for _ in range(400):
        work = (
            int(rng.integers(0, 2) * 100),
            int(rng.integers(1, 32)),
            int(rng.integers(1e3, 1e4)),
        )
        timer.begin(work, now)
        now += truth.step_s(*work)
        timer.end(now, 0, 1, 0)
    wrong = StepTimeModel(1e-2, 0, 0, 0, 0)
    found = better_model(timer.samples(), wrong)
    assert found is not None
    assert found.decode_seq_s == pytest.approx(truth.decode_seq_s, rel=0.05)
    assert better_model(timer.samples(), truth) is None
    assert better_model(timer.samples()[:3], wrong) is None  # too few to say

    refit = StepTimeRefit(every_steps=1000)
    assert refit.poll(timer, wrong) is None  # begun, in its thread
    deadline = time.monotonic() + 30
    while (model := refit.poll(timer, wrong)) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert model == found
    assert refit.adopted == 1
    never = StepTimeRefit(every_steps=0)
    never.poll(timer, wrong)
    assert never._work is None


def test_a_refit_that_raises_is_told_once_and_the_next_one_may_do(caplog, monkeypatch):
    """What a fit raised came up again in every step after it, and no refit was ever made again."""
    truth = StepTimeModel(2e-3, 1e-3, 2e-5, 3e-4, 1e-8)
    refit, timer, now = StepTimeRefit(every_steps=250), StepTimer(), 0.0

    def steps(count: int, slower: float) -> None:
        nonlocal now
        for step in range(count):
            work = (100 * (step % 3 == 0), 1 + step % 30, 1000 + 37 * (step % 50))
            timer.begin(work, now)
            now += slower * truth.step_s(*work)
            timer.end(now, 0, 1, 0)

    def ended() -> StepTimeModel | None:
        assert refit.poll(timer, truth) is None  # begun
        wait([refit._work])
        return refit.poll(timer, truth)

    steps(250, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(refit, "_fit", Mock(side_effect=np.linalg.LinAlgError("no convergence")))
        assert ended() is None
    assert "no convergence" in caplog.text
    steps(2048, 2.0)
    found = ended()
    assert found is not None
    assert found.decode_seq_s == pytest.approx(2.0 * truth.decode_seq_s, rel=0.05)


def test_no_refit_foresees_its_own_steps_worse_than_the_model_it_replaces():
    """Where no model fits, as with steps that prompts make shorter, a fit to a part of them did."""
    decodes, prompts = (0.0, 32.0, 16_000.0, 0.05), (512.0, 32.0, 16_000.0, 0.01)
    samples = np.random.default_rng(1).permutation(np.repeat([decodes, prompts], 1000, axis=0))
    for believed in (
        StepTimeModel(8e-3, 6e-4, 2.5e-5, 8e-5, 1.5e-8),
        StepTimeModel(8e-3, 6e-4, 2.5e-3, 8e-7, 1e-6),
    ):
        anchor = Anchor(believed, 8192.0, 256.0)
        found = better_model(samples, believed, anchor)
        assert found is None or model_error(found, samples) < model_error(believed, samples)


def test_an_hour_of_short_prompts_does_not_undo_what_long_ones_said():
    """Refit after refit: the little that short ones move a coefficient does not add up."""
    believed = load_profile("tiny-cpu").step_time
    truth = replace(believed, prefill_token_s=3.0 * believed.prefill_token_s)
    capacity = Capacity(32, 100_000, 2048)
    rng = np.random.default_rng(0)

    def steps(longest, price):
        decodes = rng.integers(0, 33, 500)
        prefill = np.where(rng.random(500) < 0.3, rng.integers(1, longest + 1, 500), 0)
        context = decodes * 200
        work = list(zip(prefill, decodes, context, strict=True))
        seconds = [price(*one) * rng.lognormal(0, 0.02) for one in work]
        return np.column_stack([prefill, decodes, context, seconds])

    refit = StepTimeRefit(1000, believed, capacity)
    long_s, models = truth.step_s(2048, 0, 0), []
    for longest in (2048, *[40] * 8):

        def price(prefill, decodes, context):
            dear = 2e-3 * min(prefill, 40)  # of a short prompt every token costs more
            return truth.step_s(prefill, decodes, context) + dear

        found = refit._fit(steps(longest, price), StepTimeModel(1.0, 0, 0, 0, 0))
        assert found is not None
        models.append(found[0])
        refit._believed = found[1]
    assert [model.step_s(2048, 0, 0) for model in models] == pytest.approx(
        [long_s] * len(models), rel=0.3
    )
    assert models[-1].step_s(2048, 0, 0) == pytest.approx(models[1].step_s(2048, 0, 0), rel=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("speed", [0.6, 1.0, 1.5])
def test_an_hour_of_full_batches_does_not_make_a_small_one_cheap(speed, seed):
    """Full steps do not say what is the step's own; a little that fewer sequences seem to save is.

    Taken for the sequences', it made plans that ran 4 of 32 while 100 waited.
    """
    believed = load_profile("tiny-cpu").step_time
    rng = np.random.default_rng(seed)
    refit = StepTimeRefit(1000, believed, Capacity(32, 100_000, 2048))

    def full_steps(count=2000):
        decodes = 32 - np.minimum(rng.poisson(1.2, count), 6)
        prefill = np.where(rng.random(count) < 0.1, rng.integers(20, 800, count), 0)
        context = decodes * rng.integers(250, 350, count)
        work = zip(prefill, decodes, context, strict=True)
        quieter = 1.0 - 0.01 * (32 - decodes)  # of the machine, where fewer run
        seconds = np.array([speed * believed.step_s(*one) for one in work]) * quieter
        return np.column_stack([prefill, decodes, context, seconds * rng.lognormal(0, 0.07, count)])

    shares = []
    for _ in range(8):
        found = refit._fit(full_steps(), StepTimeModel(1.0, 0, 0, 0, 0))
        assert found is not None
        model, refit._believed = found
        assert model.step_s(0, 32, 9600) == pytest.approx(
            speed * believed.step_s(0, 32, 9600), rel=0.05
        )
        shares.append(model.step_s(0, 4, 1200) / model.step_s(0, 32, 9600))
    assert shares == pytest.approx(
        [believed.step_s(0, 4, 1200) / believed.step_s(0, 32, 9600)] * 8, rel=0.25
    )


def test_priors_come_from_the_card(predictor_dir):
    priors = load_priors(str(predictor_dir))
    card = json.loads((predictor_dir / "card.json").read_text())
    known = next(name for name in card["class_priors"] if name != "*")
    assert priors.prior(known).tolist() == card["class_priors"][known]
    assert priors.prior("unheard of").tolist() == card["class_priors"]["*"]
    assert priors.gaussian(known).tolist() == card["class_gaussian"][known]


@pytest.mark.parametrize("content", [None, "{half", "[]", "{}", '{"levels": [0.5]}'])
def test_a_bad_card_is_an_input_error(tmp_path, content):
    if content is not None:
        (tmp_path / "card.json").write_text(content)
    with pytest.raises(InputError, match=r"card\.json"):
        load_priors(tmp_path)


def test_the_generic_prior_is_broad_and_usable():
    row = generic_priors().pooled()
    assert check_quantiles(row.tolist(), len(row)) is not None
    assert row[-1] / row[0] > 20


SLO = Slo(ttft_s=1.0, e2e_s=10.0)


def tracked(slo=SLO, first=0.5):
    return Tracked(
        "r",
        0.0,
        0.0,
        slo,
        1.0,
        5,
        100,
        np.ones(12),
        np.ones(12),
        "learned",
        None,
        first_token_s=first,
    )


def test_outcomes_follow_the_benchmarks_definitions():
    outcome = Outcome.of(tracked(), "finished", output_tokens=11, now_s=2.5)
    assert (outcome.ttft_s, outcome.tpot_s, outcome.e2e_s) == (0.5, 0.2, 2.5)
    assert outcome.met(tracked()) is True
    assert Outcome.of(tracked(), "finished", 1, 0.5).tpot_s == 0.0
    assert Outcome.of(tracked(first=1.5), "finished", 2, 3.0).met(tracked(first=1.5)) is False


def test_failed_requests_miss_and_abandoned_or_best_effort_ones_do_not_count():
    assert Outcome.of(tracked(first=None), "failed", 0, 1.0).met(tracked()) is False
    assert Outcome.of(tracked(), "aborted", 3, 1.0).met(tracked()) is None
    free = tracked(slo=Slo())
    assert Outcome.of(free, "finished", 3, 1.0).met(free) is None


def test_a_held_table_gives_no_row_away():
    table = RequestTable(np.linspace(0.05, 0.99, 12))

    def add(name, arrival_s):
        one = tracked()
        one.request_id, one.arrival_s = name, arrival_s
        table.add(one)

    add("old", 1.0)
    rows = table.rows(["old"])
    table.hold()
    table.remove("old")
    for i in range(1000):
        add(f"r{i}", 2.0)
    assert table.arrays(rows).arrival_s.tolist() == [1.0]
    table.release()
    while table.arrays(rows).arrival_s[0] == 1.0:
        add(f"r{len(table)}", 2.0)
        assert len(table) < 3000
    assert rows[0] in table.rows([f"r{len(table) - 1}"])


def test_the_request_table_grows_and_reuses_rows():
    table = RequestTable(np.linspace(0.05, 0.99, 12))
    for i in range(600):
        one = tracked()
        one.request_id, one.arrival_s = f"r{i}", float(600 - i)
        table.add(one)
    for i in range(0, 600, 2):
        assert table.remove(f"r{i}") is not None
    assert table.remove("r0") is None
    assert table.rows(["r0", "r1"]).tolist()[0] == -1
    arrays = table.arrays(table.rows([f"r{i}" for i in range(599, 0, -2)]))
    assert arrays.arrival_s.tolist() == [float(600 - i) for i in range(599, 0, -2)]
    assert np.isinf(arrays.tpot_s).all()
    assert (arrays.ttft_s == 1.0).all()


@pytest.mark.parametrize("scale", [1e-7, 1.0, 1e5, 1e30])
def test_logged_features_are_rounded_as_numpy_does(scale):
    rows = (np.random.default_rng(3).standard_normal((3, 200)) * scale).astype(np.float32)
    rows[0, :3] = np.nan, np.inf, -np.inf
    out = np.empty_like(rows)
    _round_for_log(rows, out)
    np.testing.assert_array_equal(out, np.where(np.isfinite(rows), rows, 0.0).round(6))


def test_classes_of_requests_that_ended_are_forgotten():
    """Their names come from clients, who may send another one each time."""
    table = RequestTable(np.linspace(0.05, 0.99, 12))

    def add(name, slo_class):
        one = tracked()
        one.request_id, one.slo = name, replace(one.slo, slo_class=slo_class)
        table.add(one)

    for number in range(300):
        add("r", f"class-{number}")
        table.remove("r")
    for name, slo_class in (("a", "x"), ("b", "x"), ("c", "y")):
        add(name, slo_class)
    same, also, other = table.arrays(table.rows(["a", "b", "c"])).class_id
    assert same == also != other
    assert max(same, other) < 3
