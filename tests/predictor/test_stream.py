"""Training from pieces gives what training on the whole gives."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from lengthwise.data.errors import InputError
from lengthwise.predictor.fitting.metrics import coverage, interval, kendall_tau
from lengthwise.predictor.fitting.stream import fit_stream
from lengthwise.predictor.model import LengthPredictor


def logged(table: pd.DataFrame, base: LengthPredictor, pieces: int) -> Iterator[pd.DataFrame]:
    prompts, classes = table["prompt"].tolist(), table["slo_class"].tolist()
    rows = base.features(prompts, classes, table["prompt_tokens"].tolist())
    with_features = table.assign(
        prompt=None,
        features=list(rows.tolist()),
        feature_contract=base.feature_contract,
        output_tokens=2 * table["output_tokens"],
    )
    for at in np.array_split(np.arange(len(table)), pieces):
        yield with_features.iloc[at].reset_index(drop=True)


def test_pieces_of_a_log_make_a_predictor(
    tables: dict[str, pd.DataFrame], predictor: LengthPredictor
) -> None:
    table = pd.concat([tables["train"], tables["calibration"]], ignore_index=True)
    table["group"] = [f"g{i}" for i in range(len(table))]
    fitted, held_out = fit_stream(predictor, logged(table, predictor, 5), n_estimators=60)
    assert fitted.feature_contract == predictor.feature_contract
    assert fitted.card["train_rows"] + sum(map(len, held_out.values())) == len(table)
    test = tables["test"]
    prompts, classes = test["prompt"].tolist(), test["slo_class"].tolist()
    predicted = fitted.predict(prompts, classes)
    assert kendall_tau(test["output_tokens"], predicted.median()) > 0.7
    assert 0.7 < coverage(2 * test["output_tokens"], *interval(predicted)) < 0.9
    ratio = predicted.median() / predictor.predict(prompts, classes).median()
    assert 1.6 < np.median(ratio) < 2.4


def test_samples_stay_bounded_and_pieces_do_not_matter(
    tables: dict[str, pd.DataFrame], predictor: LengthPredictor
) -> None:
    one, few = (
        fit_stream(
            predictor, logged(tables["train"], predictor, n), held_out_rows=50, n_estimators=5
        )
        for n in (1, 7)
    )
    assert {len(sample) for _, held_out in (one, few) for sample in held_out.values()} == {50}
    prompts = tables["test"]["prompt"].tolist()
    raw = [
        fitted.estimator.predict_location_scale(fitted.features(prompts))[0]  # type: ignore[attr-defined]
        for fitted, _ in (one, few)
    ]
    np.testing.assert_array_equal(raw[0], raw[1])


def test_rows_of_another_predictor_and_an_empty_log_are_refused(
    tables: dict[str, pd.DataFrame], predictor: LengthPredictor
) -> None:
    foreign = next(logged(tables["train"], predictor, 1)).assign(feature_contract="v0-other")
    with pytest.raises(InputError, match="v0-other"):
        fit_stream(predictor, [foreign])
    with pytest.raises(InputError, match="too few rows"):
        fit_stream(predictor, [])
