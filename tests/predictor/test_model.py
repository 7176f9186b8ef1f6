import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lengthwise.data.errors import InputError
from lengthwise.predictor.fitting import fit
from lengthwise.predictor.fitting.evaluate import evaluate
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor

Tables = dict[str, pd.DataFrame]


def test_it_reads_the_prompt(predictor: LengthPredictor, tables: Tables) -> None:
    result = evaluate(predictor, tables["test"], tables["train"])
    assert result["within_task_tau"] > 0.4
    assert result["mae"] < 0.5 * result["baselines"]["class_quantiles"]["mae"]
    assert result["pinball_gain"] > 0.5
    assert result["baselines"]["oracle"]["mae"] == pytest.approx(0)
    json.dumps(result)


def test_intervals_hold_what_they_name(predictor: LengthPredictor, tables: Tables) -> None:
    result = evaluate(predictor, tables["test"])
    assert 0.75 < result["coverage"] < 0.85
    for row in result["by_class"].values():
        assert 0.72 < row["coverage"] < 0.88


def test_more_words_asked_for_means_a_longer_answer(predictor: LengthPredictor) -> None:
    prompts = [f"Write an essay about bees in {n} words." for n in (50, 200, 400)]
    assert (np.diff(predictor.predict(prompts, ["chat"] * 3).median()) > 30).all()


def test_save_and_load_predict_alike(
    predictor: LengthPredictor, tables: Tables, tmp_path: Path
) -> None:
    predictor.save(tmp_path)
    again = LengthPredictor.load(tmp_path)
    prompts, classes = tables["test"]["prompt"].tolist(), tables["test"]["slo_class"].tolist()
    np.testing.assert_array_equal(
        predictor.predict(prompts, classes).quantiles, again.predict(prompts, classes).quantiles
    )
    assert again.feature_contract == predictor.feature_contract
    assert not list(tmp_path.rglob("*.pkl"))


def test_one_by_one_is_the_same_as_together(predictor: LengthPredictor, tables: Tables) -> None:
    prompts, classes = tables["test"]["prompt"][:20].tolist(), ["chat"] * 20
    together = predictor.predict(prompts, classes).quantiles
    single = [predictor.predict([p], ["chat"]).quantiles[0] for p in prompts]
    np.testing.assert_array_equal(together, single)


def test_logged_features_predict_like_the_text(predictor: LengthPredictor) -> None:
    prompts = ["List 4 facts about bees, one bullet each."]
    rows = predictor.features(prompts, ["chat"], [12])
    np.testing.assert_array_equal(
        predictor.predict_features(rows, ["chat"]).quantiles,
        predictor.predict(prompts, ["chat"], [12]).quantiles,
    )


HARD = ["", " \n", "\x00", "🙂🙂", "今天", "word " * 200_000, None, "\ud800"]


def test_any_prompt_gets_a_valid_distribution(predictor: LengthPredictor) -> None:
    d = predictor.predict(HARD, ["chat", "never-seen", None, "chat", None, "chat", "chat", None])
    assert np.isfinite(d.quantiles).all()
    assert (d.quantiles >= 1).all()
    assert (np.diff(d.quantiles, axis=1) >= 0).all()


def test_token_ids_get_the_class_prior(predictor: LengthPredictor) -> None:
    d = predictor.predict([None, None], ["agent_step", "never-seen"])
    np.testing.assert_allclose(d.quantiles[0], predictor.class_prior("agent_step"))
    np.testing.assert_allclose(d.quantiles[1], predictor.class_prior(None))


def test_max_tokens_caps_the_lengths(predictor: LengthPredictor) -> None:
    d = predictor.predict(["Write an essay about bees in 400 words."] * 2, max_tokens=[64, 5000])
    assert d.quantile(0.99)[0] == pytest.approx(64)
    assert d.quantile(0.99)[1] > 300


def test_an_empty_batch_is_an_empty_distribution(predictor: LengthPredictor) -> None:
    assert len(predictor.predict([])) == 0


def test_feature_rows_of_another_width_are_refused(predictor: LengthPredictor) -> None:
    with pytest.raises(InputError, match="feature rows must be"):
        predictor.predict_features(np.zeros((1, 3)))


def test_unequal_columns_are_refused(predictor: LengthPredictor) -> None:
    with pytest.raises(InputError, match="must have 1 rows"):
        predictor.predict(["a"], ["chat", "chat"])


@pytest.mark.parametrize(
    "name",
    [
        "card.json",
        "features.npz",
        "features.json",
        "calibration.json",
        "estimator/student/booster.txt",
        "estimator/student/booster_3.txt",
    ],
)
def test_a_missing_or_truncated_file_is_refused(
    predictor: LengthPredictor, tmp_path: Path, name: str
) -> None:
    predictor.save(tmp_path)
    path = tmp_path / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        LengthPredictor.load(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=path.name):
        LengthPredictor.load(tmp_path)


def test_foreign_features_are_refused(predictor: LengthPredictor, tmp_path: Path) -> None:
    predictor.save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    (tmp_path / "card.json").write_text(json.dumps(card | {"feature_contract": "v0-feed"}))
    with pytest.raises(InputError, match="v0-feed"):
        LengthPredictor.load(tmp_path)
    (tmp_path / "card.json").write_text(json.dumps(card | {"format_version": 99}))
    with pytest.raises(InputError, match="99"):
        LengthPredictor.load(tmp_path)
    other = card["estimator"] | {"params": {"no_such_parameter": 1}}
    (tmp_path / "card.json").write_text(json.dumps(card | {"estimator": other}))
    with pytest.raises(InputError, match="train it again"):
        LengthPredictor.load(tmp_path)


def test_too_few_rows_and_unknown_settings_are_refused(tables: Tables) -> None:
    with pytest.raises(InputError, match="at least 20 rows"):
        fit_predictor(tables["train"][:5], tables["calibration"])
    with pytest.raises(InputError, match="unknown estimator 'oracle-bones'"):
        fit_predictor(tables["train"], tables["calibration"], estimator="oracle-bones")
    with pytest.raises(InputError, match="unknown parameter 'depth'"):
        fit_predictor(tables["train"], tables["calibration"], depth=3)


def test_importances_are_named_and_sum_to_at_most_one(predictor: LengthPredictor) -> None:
    shares = list(predictor.card["importances"].values())
    assert set(predictor.card["importances"]) <= set(predictor.feature_names)
    assert shares == sorted(shares, reverse=True)
    assert 0.5 < sum(shares) <= 1.0 + 1e-9


def test_without_calibration_the_estimators_own_levels_are_read(
    predictor: LengthPredictor, tables: dict[str, pd.DataFrame]
) -> None:
    prompts = tables["test"]["prompt"].tolist()[:20]
    raw = predictor.without_conformal().predict(prompts).quantiles
    rows = predictor.features(prompts)
    asked = predictor.estimator.predict_log_quantiles(rows, np.array(predictor.levels))
    np.testing.assert_allclose(raw, np.maximum(np.exp(asked), 1.0), rtol=1e-6)


def test_with_enough_rows_both_sides_are_learned_from(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A word whose answers stand on the calibration side alone is known only then."""
    train = tables["train"].copy()
    calibration = tables["calibration"].copy()
    train["slo_class"] = calibration["slo_class"] = "chat"
    new = calibration.index[:200]
    calibration.loc[new, "prompt"] = [f"Zymurgy question number {i}" for i in range(200)]
    calibration.loc[new, "output_tokens"] = 5_000
    said = {}
    for least in (10**9, 1):
        monkeypatch.setattr(fit, "CROSSED_ROWS", least)
        fitted = fit_predictor(train, calibration, n_estimators=20, seed=3)
        said[least] = fitted.predict(["Zymurgy question number 7"], ["chat"]).quantile(0.5)[0]
        assert not fitted.estimator.held_out_ or least > 1
    assert said[10**9] < 1_500
    assert said[1] > 3_000


def test_one_member_is_calibrated_on_rows_it_has_not_learned(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "CROSSED_ROWS", 1)
    one = fit_predictor(tables["train"], tables["calibration"], n_estimators=30, folds=1, epochs=5)
    assert not np.allclose(one.conformal.pooled, one.levels)
    assert 0.72 < evaluate(one, tables["test"])["coverage"] < 0.88
