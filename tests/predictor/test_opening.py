"""Answers that have begun: what is cut out of them, what is learned, what travels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.predictor.features.opening_text import OPENING_TOKENS, cut_to, opening_of
from lengthwise.predictor.fitting.fit import fit_on_features, fit_predictor
from lengthwise.predictor.fitting.metrics import kendall_tau, mae, pinball
from lengthwise.predictor.model import LengthPredictor

SHORT, LONG = "Briefly put, the answer is", "Here is a very thorough and detailed"


def words(text: str) -> int:
    return len(text.split())


def with_answers(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """The prompts ask for the same; how long the answer is stands in its first words alone."""
    rng = np.random.default_rng(seed)
    table = table[table["slo_class"] == "chat"].reset_index(drop=True)
    long = rng.random(len(table)) < 0.5
    tokens = np.where(long, 300, 90) * rng.lognormal(0.0, 0.1, len(table))
    table["output_tokens"] = np.maximum(60, tokens).round().astype(int)
    table["response"] = [
        " ".join([LONG if is_long else SHORT, *(f"w{i % 7}" for i in range(n))])
        for is_long, n in zip(long, table["output_tokens"], strict=True)
    ]
    table.attrs["tokenizer"] = "words"
    return table


@pytest.fixture(scope="module", autouse=True)
def counting_words() -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr("lengthwise.predictor.fitting.fit_openings.load_counter", lambda name: words)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def sides(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    return {name: with_answers(table, seed) for seed, (name, table) in enumerate(tables.items())}


@pytest.fixture(scope="module")
def opened(sides: dict[str, pd.DataFrame]) -> LengthPredictor:
    return fit_predictor(sides["train"], sides["calibration"], openings=True, n_estimators=30)


# -- texts ------------------------------------------------------------------------------------


def test_an_opening_is_what_so_many_tokens_spell() -> None:
    answer = " ".join(f"word{i}" for i in range(500))
    for tokens in OPENING_TOKENS:
        assert abs(words(opening_of(answer, tokens, words)) - tokens) <= 1
    sparse = " ".join("x" * 60 for _ in range(100))
    assert abs(words(opening_of(sparse, 16, words)) - 16) <= 1
    assert opening_of("three words only", 16, words) == "three words only"
    assert opening_of("", 16, words) == ""


@given(st.text(), st.integers(0, 100), st.integers(1, 60))
def test_a_cut_text_is_a_beginning_that_is_never_longer(text: str, counted: int, tokens: int):
    cut = cut_to(text, counted, tokens)
    assert text.startswith(cut)
    assert cut == text or counted > tokens
    assert bool(cut) == bool(text)


# -- what is learned --------------------------------------------------------------------------


def test_the_opening_says_what_the_prompt_cannot(
    opened: LengthPredictor, sides: dict[str, pd.DataFrame]
) -> None:
    test = sides["test"]
    y, prompts = test["output_tokens"].to_numpy(float), test["prompt"].tolist()
    classes = test["slo_class"].tolist()
    before = opened.predict(prompts, classes)
    assert opened.opening_tokens == OPENING_TOKENS
    for tokens in OPENING_TOKENS:
        openings = [opening_of(answer, tokens, words) for answer in test["response"]]
        after = opened.reestimate(openings, tokens, prompts, classes)
        assert mae(y, after.median()) < 0.5 * mae(y, before.median())
        assert kendall_tau(y, after.median()) > kendall_tau(y, before.median()) + 0.2
        assert pinball(y, after) < pinball(y, before)
        assert (np.diff(after.quantiles, axis=1) >= 0).all()
        covered = (y >= after.quantile(0.1)) & (y <= after.quantile(0.9))
        assert 0.7 < covered.mean() < 0.92


def test_prompts_are_predicted_as_without_openings(
    opened: LengthPredictor, sides: dict[str, pd.DataFrame]
) -> None:
    plain = fit_predictor(sides["train"], sides["calibration"], n_estimators=30)
    prompts = sides["test"]["prompt"].tolist()
    np.testing.assert_array_equal(
        plain.predict(prompts).quantiles, opened.predict(prompts).quantiles
    )
    assert plain.opening_tokens == ()
    with pytest.raises(InputError, match="tokens must be one of none, got 16"):
        plain.reestimate(["x"], 16, ["y"])


def test_odd_openings_are_read_too(opened: LengthPredictor) -> None:
    odd = ["", " \n\t", "\ud800 broken", "春眠不觉晓" * 20, "x" * 100_000]
    found = opened.reestimate(odd, 16, ["Write an essay about bees in 100 words."] * len(odd))
    assert np.isfinite(found.quantiles).all()
    assert (found.quantiles >= 1).all()


@pytest.mark.parametrize(
    ("openings", "tokens", "named"),
    [(["a"], 17, "16, 48, got 17"), (["a", "b"], 16, "openings must have 1 rows, got 2")],
)
def test_what_does_not_fit_is_named(opened, openings, tokens, named) -> None:
    with pytest.raises(InputError, match=named):
        opened.reestimate(openings, tokens, ["prompt"])


def test_rows_without_text_are_left_out_and_counted(sides: dict[str, pd.DataFrame]) -> None:
    lacking = {}
    for name in ("train", "calibration"):
        lacking[name] = sides[name].copy()
        lacking[name].loc[lacking[name].index % 3 == 0, "response"] = None
    told = fit_predictor(lacking["train"], lacking["calibration"], openings=True, n_estimators=10)
    said = told.card["openings"]
    # the calibration side of so few rows is kept apart
    rows = int(lacking["train"]["response"].notna().sum())
    assert said["without_text"] == len(lacking["train"]) - rows
    assert {name: one["rows"] for name, one in said["after"].items()} == {"16": rows, "48": rows}


def test_too_few_answers_make_no_estimator(sides: dict[str, pd.DataFrame]) -> None:
    few = sides["train"].copy()
    few.loc[few.index > 250, "response"] = None
    told = fit_predictor(few, sides["calibration"].assign(response=None), openings=True)
    assert told.opening_tokens == ()
    assert told.card["openings"]["after"] == {}


@pytest.mark.parametrize("other", [{"estimator": "lightgbm_student"}, {"causal_reader": "x"}])
def test_it_goes_with_the_default_alone(sides: dict[str, pd.DataFrame], other) -> None:
    with pytest.raises(InputError, match="openings go with lightgbm alone"):
        fit_predictor(sides["train"], sides["calibration"], openings=True, **other)


# -- the artifact -----------------------------------------------------------------------------


def test_it_travels_with_the_artifact(
    opened: LengthPredictor, sides: dict[str, pd.DataFrame], tmp_path: Path
) -> None:
    opened.save(tmp_path)
    loaded = LengthPredictor.load(tmp_path)
    assert loaded.opening_tokens == OPENING_TOKENS
    asked = [SHORT, LONG], 48, sides["test"]["prompt"].tolist()[:2], ["chat", None]
    np.testing.assert_allclose(
        loaded.reestimate(*asked).quantiles, opened.reestimate(*asked).quantiles, rtol=1e-5
    )
    assert loaded.without_reader().opening_tokens == OPENING_TOKENS
    assert loaded.without_conformal().opening_tokens == OPENING_TOKENS


def test_an_artifact_without_openings_loads_and_a_broken_one_is_named(
    opened: LengthPredictor, tmp_path: Path
) -> None:
    opened.save(tmp_path)
    card = json.loads((tmp_path / "card.json").read_text())
    del card["openings"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert LengthPredictor.load(tmp_path).opening_tokens == ()
    opened.save(tmp_path)
    (tmp_path / "opening_48" / "features.npz").write_bytes(b"PK")
    with pytest.raises(InputError, match="opening_48"):
        LengthPredictor.load(tmp_path)


def test_learned_from_features_alone_there_are_none(
    opened: LengthPredictor, sides: dict[str, pd.DataFrame]
) -> None:
    train = sides["train"].assign(feature_contract=opened.feature_contract)
    train["features"] = list(opened.features(train["prompt"], train["slo_class"].tolist()))
    again = fit_on_features(opened, train[:400], train[400:])
    assert again.opening_tokens == ()
