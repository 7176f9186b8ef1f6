"""Train a `LengthPredictor` from tables: features, estimator, calibration, priors."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import norm

from lengthwise.data.errors import InputError
from lengthwise.predictor.artifact import READERS, estimator_class
from lengthwise.predictor.conformal import ConformalLevels
from lengthwise.predictor.distribution import DEFAULT_LEVELS, Floats
from lengthwise.predictor.estimators.blend import LGBMBlendRegressor
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.features.columns import DEFAULT_BLOCKS, PromptFeatures
from lengthwise.predictor.features.embedding import SentenceEmbedding
from lengthwise.predictor.features.reader_columns import CausalReader
from lengthwise.predictor.features.text import HashedText
from lengthwise.predictor.fitting.fit_openings import fit_openings
from lengthwise.predictor.fitting.held_out import (
    HeldOut,
    conformal_levels,
    crossed_levels,
    weigh,
)
from lengthwise.predictor.model import ANY_CLASS, LengthPredictor
from lengthwise.predictor.opening_reading import KNOWN_LEVELS, OpeningReading
from lengthwise.predictor.reading import CausalReading, joined

Progress = Callable[[str, float], None]  # what is being done, share done
DEFAULT_BOOSTER = "lightgbm"
_READER_PACKAGES = ("torch", "transformers", "accelerate")
_NAMED_COLUMNS = 25
_MIN_ROWS = 20
_MIN_CALIBRATION = 30
CROSSED_ROWS = 1_500  # from so many on both sides are learned from


def fit_predictor(
    table_train: pd.DataFrame,
    table_calibration: pd.DataFrame,
    *,
    estimator: str = "lightgbm",
    seed: int = 0,
    progress: Progress | None = None,
    blocks: tuple[str, ...] = DEFAULT_BLOCKS,
    embedding: str | None = None,
    causal_reader: str | CausalReader | None = None,
    openings: bool = False,
    text_params: dict[str, Any] | None = None,
    reader_params: dict[str, Any] | None = None,
    **params: Any,
) -> LengthPredictor:
    """Fit on `table_train` and calibrate on `table_calibration` (prompt tables of `data.table`).

    From CROSSED_ROWS rows on the default learns from both and is calibrated out of fold
    (`predictor.estimators.blend`), except beside a reader, too dear to be trained once a fold.
    `embedding` names a frozen encoder whose columns are added (block "embedding"),
    `causal_reader` a causal model that says the lengths of what it reads, where that pays;
    with `openings` answers that have begun are estimated anew (`predictor.opening_reading`), which
    needs the default estimator, no causal reader, and the answers' text.
    `params` go to the booster, `reader_params` to `bert_fit.fit_reader`: "bert" is a fine-tuned
    encoder, "stack" its average with the default booster. Rows without prompt text are left out.
    InputError where too few rows are left; with under 30 calibration rows the quantiles stay as
    the estimator gives them.
    """
    report = progress or _silent
    if openings and (estimator != DEFAULT_BOOSTER or causal_reader is not None):
        other = estimator if causal_reader is None else "a causal reader"
        raise InputError(f"openings go with {DEFAULT_BOOSTER} alone, got {other}")
    train = _rows_with(table_train, "prompt", _MIN_ROWS)
    calibration = _rows_with(table_calibration, "prompt", 0)
    booster = DEFAULT_BOOSTER if estimator in READERS else estimator
    reader_free = estimator not in READERS
    boosted = 0.95 if reader_free else 0.2

    report("reading prompts", 0.0)
    text = HashedText(random_state=seed, **(text_params or {}))
    features = PromptFeatures(text, blocks)
    if embedding is not None:
        sentences = SentenceEmbedding(embedding, random_state=seed)
        features = PromptFeatures(text, (*blocks, "embedding"), sentences)
    model = estimator_class(booster)(**_with_seed(booster, seed, params))
    learned = _learned(model, train, calibration) if reader_free else train
    y = learned["output_tokens"].to_numpy(np.float64)
    groups = learned["group"].astype(str).tolist()
    rows = features.fit_transform(learned, y, groups)
    report("boosting", 0.4 * boosted)
    model.fit(rows, y, censored=censored_rows(learned), groups=groups)
    reader = None
    if estimator in READERS:
        from lengthwise.predictor.estimators.encoder_fit import (
            fit_reader,  # torch and transformers: only where asked for
        )

        reader = fit_reader(
            train["prompt"].tolist(),
            train["output_tokens"].to_numpy(np.float64),
            censored_rows(train),
            seed=seed,
            report=lambda share: report("fine-tuning the encoder", 0.2 + 0.7 * share),
            **(reader_params or {}),
        )
    report("calibrating", 0.95)
    unseen: dict[str, Floats] = {}
    if openings and isinstance(model, LGBMBlendRegressor):
        unseen = model.held_out_quantiles(KNOWN_LEVELS)
    levels = _calibrated(model, features.transform, learned, train, calibration, params, seed)
    card = make_card(train, estimator, booster, model, features)
    opened: tuple[OpeningReading, ...] = ()
    if unseen and isinstance(model, LGBMBlendRegressor):
        report("reading answers' openings", 0.96)
        opened, card["openings"] = fit_openings(
            learned, rows, model.mixed(unseen), censored_rows(learned), seed=seed
        )
    reading = None
    if reader is not None:
        held_out = HeldOut.of(calibration) if len(calibration) >= _MIN_CALIBRATION else None
        apart = features.transform(calibration)
        reading = weigh(reader, model, apart, held_out, share=READERS[estimator])
        card["reader"] = {"share": reading.share, "int8": reader.int8} | (reader_params or {})
    causal = None
    if causal_reader is not None:
        if isinstance(causal_reader, str):
            causal_reader = CausalReader(causal_reader, random_state=seed)
        report(f"reading prompts with {causal_reader.model}", 0.96)
        second = estimator_class(booster)(**_with_seed(booster, seed, params))
        causal = _with_reader(
            causal_reader, second, features, rows, (learned, train, calibration), params, seed
        )
        card["causal_reader"] = _told_of(causal_reader) | {
            "estimator": {"name": booster, "params": second.get_params()}
        }
    report("done", 1.0)
    return LengthPredictor(features, model, levels, card, reading, causal, opened)


def _with_reader(
    reader: CausalReader,
    model: LengthRegressor,
    features: PromptFeatures,
    rows: NDArray[np.float32],
    tables: tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame],
    params: dict[str, Any],
    seed: int,
) -> CausalReading | None:
    """Reader and estimator of the rows to learn from, (n, f); None where it pays for no class.

    `tables` are what those rows are of, the training side and the calibration side.
    """
    learned = tables[0]

    def read(table: pd.DataFrame) -> NDArray[np.float32]:
        columns = reader.transform(table["prompt"].tolist(), table["slo_class"].tolist())
        return joined(features.transform(table), columns)

    y, groups = learned["output_tokens"].to_numpy(np.float64), learned["group"].astype(str).tolist()
    names = features.get_feature_names_out().tolist()
    known = rows[:, names.index("text_class_ridge")] if "text_class_ridge" in names else None
    texts, classes = learned["prompt"].tolist(), learned["slo_class"].tolist()
    columns = reader.fit_transform(texts, y, groups, classes, known)
    if not columns.shape[1]:
        return None
    model.fit(joined(rows, columns), y, censored=censored_rows(learned), groups=groups)
    levels = _calibrated(model, read, *tables, params, seed)
    return CausalReading(reader, model, levels)


def _told_of(reader: CausalReader) -> dict[str, Any]:
    """Which causal reader it is, with which weights, of which classes it reads the prompts."""
    return {
        "model": reader.model,
        "digest": reader.digest_,
        "classes": reader.read_classes_,
        "gains": {name: round(gain, 4) for name, gain in reader.gains_.items()},
    }


def fit_on_features(
    base: LengthPredictor,
    table_train: pd.DataFrame,
    table_calibration: pd.DataFrame,
    *,
    seed: int = 0,
    progress: Progress | None = None,
    **params: Any,
) -> LengthPredictor:
    """Learn new lengths from rows of `features` that `base` computed; no text is needed.

    `base` keeps its way of reading prompts and its feature contract; booster, calibration and
    priors are new. A reader, which needs the text, is left out. InputError where a row's
    `feature_contract` is another's.
    """
    report = progress or _silent
    train = _rows_with(table_train, "features", _MIN_ROWS)
    calibration = _rows_with(table_calibration, "features", 0)
    check_contract(base, train)
    check_contract(base, calibration)
    booster = base.card["estimator"]["name"]
    report("boosting", 0.0)
    model = estimator_class(booster)(**_with_seed(booster, seed, params))
    learned = _learned(model, train, calibration)
    groups = learned["group"].astype(str).tolist()
    model.fit(
        logged_features(learned),
        learned["output_tokens"],
        censored=censored_rows(learned),
        groups=groups,
    )
    report("calibrating", 0.95)
    levels = _calibrated(model, logged_features, learned, train, calibration, params, seed)
    card = make_card(train, booster, booster, model, base.prompt_features)
    report("done", 1.0)
    return LengthPredictor(base.prompt_features, model, levels, card)


def _learned(
    model: LengthRegressor, train: pd.DataFrame, calibration: pd.DataFrame
) -> pd.DataFrame:
    """Rows to train on: both sides' where the model will have predicted each of them unseen.

    Few rows may make members that err far more than their mean does, and calibration on what
    members said of rows unseen then is too wide: better calibrated apart.
    """
    if not isinstance(model, LGBMBlendRegressor) or not len(calibration):
        return train
    both = pd.concat([train, calibration], ignore_index=True)
    both.attrs = dict(train.attrs)
    holds_out = model.fold_count(len(both), both["group"]) > 1
    return both if holds_out and len(both) >= CROSSED_ROWS else train


def _calibrated(
    model: LengthRegressor,
    read: Callable[[pd.DataFrame], NDArray[np.float32]],
    learned: pd.DataFrame,
    train: pd.DataFrame,
    calibration: pd.DataFrame,
    params: dict[str, Any],
    seed: int,
) -> ConformalLevels:
    """On the calibration side; out of fold where that was learned from, or is too small."""
    if learned is train and len(calibration) >= _MIN_CALIBRATION:
        return conformal_levels(model, read(calibration), HeldOut.of(calibration), params)
    if isinstance(model, LGBMBlendRegressor) and model.held_out_:
        return crossed_levels(model, learned, params, seed)
    return ConformalLevels.none(DEFAULT_LEVELS)


def check_contract(base: LengthPredictor, table: pd.DataFrame) -> None:
    """InputError where rows hold features of another predictor's."""
    foreign = set(table["feature_contract"]) - {base.feature_contract}
    if foreign:
        raise InputError(
            f"the rows have features {min(map(str, foreign))}, "
            f"the predictor computes {base.feature_contract}"
        )


def logged_features(table: pd.DataFrame) -> NDArray[np.float32]:
    """The column `features` as a matrix, (n, f)."""
    return np.stack([np.asarray(row, np.float32) for row in table["features"]])


def _rows_with(table: pd.DataFrame, column: str, least: int) -> pd.DataFrame:
    rows = table[table[column].notna()]
    if len(rows) < least:
        what = "text" if column == "prompt" else column
        raise InputError(f"training needs at least {least} rows with {what}, got {len(rows)}")
    return rows


def _silent(_what: str, _share: float) -> None:
    """Progress nobody asked for."""


def check_estimator(name: str) -> None:
    """InputError for a name `fit_predictor` does not know, or whose packages are not installed."""
    if name not in READERS:
        estimator_class(name)
    elif missing := [package for package in _READER_PACKAGES if find_spec(package) is None]:
        raise InputError(f"{name} needs {missing[0]}: pip install lengthwise[bert]")


def check_reader(name: str) -> None:
    """InputError for a causal reader that cannot be had, before anything is trained."""
    if missing := [package for package in ("torch", "transformers") if find_spec(package) is None]:
        raise InputError(f"a reader needs {missing[0]}: pip install lengthwise[reader]")
    from lengthwise.predictor.features.reader_states import causal_states  # torch

    causal_states(name)


def make_card(
    table: pd.DataFrame,
    name: str,
    booster: str,
    model: LengthRegressor,
    features: PromptFeatures,
) -> dict[str, Any]:
    """Provenance, priors and importances of a training; `name` is what was asked for."""
    lengths = {ANY_CLASS: table["output_tokens"].to_numpy(np.float64)} | {
        str(name): part.to_numpy(np.float64)
        for name, part in table.groupby("slo_class")["output_tokens"]
    }
    return {
        "levels": list(DEFAULT_LEVELS),
        "feature_contract": features.contract,
        "embedding": features.embedding_.encoder if features.embedding_ is not None else None,
        "name": name,
        "estimator": {"name": booster, "params": model.get_params()},
        "tokenizer": table.attrs.get("tokenizer"),
        "served_model": sorted({str(model) for model in table["model"].unique()}),
        "source_label": table.attrs.get("source_label"),
        "data_sha256": table.attrs.get("data_sha256"),
        "train_rows": len(table),
        "class_priors": {name: _empirical(values) for name, values in lengths.items()},
        "class_gaussian": {name: _gaussian(values) for name, values in lengths.items()},
        "importances": _named_importances(model, features),
        "metrics": {},
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _named_importances(model: LengthRegressor, features: PromptFeatures) -> dict[str, float]:
    """The columns that gained most and their shares, largest first."""
    shares = model.importances()
    if shares is None:
        return {}
    names = features.get_feature_names_out()
    return {str(names[i]): float(shares[i]) for i in np.argsort(-shares)[:_NAMED_COLUMNS]}


def censored_rows(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which answers were cut off, so that their length is a lower bound."""
    if "censored" not in table:
        return np.zeros(len(table), bool)
    return table["censored"].fillna(False).to_numpy(bool)


def _with_seed(estimator: str, seed: int, params: dict[str, Any]) -> dict[str, Any]:
    accepted = estimator_class(estimator)().get_params()
    unknown = sorted(set(params) - set(accepted))
    if unknown:
        raise InputError(
            f"unknown parameter {unknown[0]!r} of {estimator}; known: {sorted(accepted)}"
        )
    return ({"random_state": seed} if "random_state" in accepted else {}) | params


def _empirical(values: Floats) -> list[float]:
    return np.maximum(np.quantile(values, DEFAULT_LEVELS), 1.0).tolist()


def _gaussian(values: Floats) -> list[float]:
    return np.maximum(
        norm.ppf(DEFAULT_LEVELS, values.mean(), max(values.std(), 1e-6)), 1.0
    ).tolist()
