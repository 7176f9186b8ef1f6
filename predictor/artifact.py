"""The directory a predictor lives in: JSON, a booster's text and plain arrays; no pickle.

    card.json          what it is: levels, contract, data hash, metrics, priors, estimator name
    calibration.json   which levels to ask the estimator for
    features.json/npz  parameters and arrays of the feature transformer
    estimator/         the estimator's own files
    reader/            a fine-tuned encoder, where the predictor has one: safetensors, tokenizer
    causal_reader/     what was learned with a causal reader, where it has one: not its weights
    opening_16/ ...    features, estimator and levels of answers that have begun, where it has them

`card.json` is written last, so a directory with a card is complete.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object, write_whole
from lengthwise.predictor.array_file import arrays_of
from lengthwise.predictor.conformal import ConformalLevels
from lengthwise.predictor.estimators.baselines import BASELINES
from lengthwise.predictor.estimators.blend import LGBMBlendRegressor
from lengthwise.predictor.estimators.hazard import LGBMHazardRegressor
from lengthwise.predictor.estimators.one_block import in_one_block
from lengthwise.predictor.estimators.rank import LGBMRankRegressor
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.estimators.student import LGBMLengthRegressor
from lengthwise.predictor.features.columns import LAYOUT_VERSION, PromptFeatures
from lengthwise.predictor.features.embedding import SentenceEmbedding
from lengthwise.predictor.features.reader_columns import CausalReader
from lengthwise.predictor.features.text import HashedText
from lengthwise.predictor.opening_reading import KNOWN_LEVELS, OpeningReading
from lengthwise.predictor.reading import CausalReading, Reading

FORMAT_VERSION = 1
# names of boosters with a reader beside them, and the reader's share; None: fitted
READERS: dict[str, float | None] = {"bert": 1.0, "stack": None}
_EMBEDDING = ("weights", "mean", "class_offsets")
_CAUSAL = "causal_reader"
_CAUSAL_ARRAYS = ("weights", "mean", "scale", "center", "class_offsets")
_CAUSAL_LISTS = ("layers", "known_classes", "read_classes", "classes")
_REQUIRED = ("levels", "feature_contract", "class_priors", "class_gaussian", "estimator")


class Parts(NamedTuple):
    """What a `LengthPredictor` is made of, in the order it takes them."""

    features: PromptFeatures
    estimator: LengthRegressor
    conformal: ConformalLevels
    card: dict[str, Any]
    reading: Reading | None = None
    causal: CausalReading | None = None
    openings: tuple[OpeningReading, ...] = ()


def estimator_class(name: str) -> type[LengthRegressor]:
    """The estimator of a registered name."""
    known: dict[str, type[LengthRegressor]] = {
        "lightgbm": LGBMBlendRegressor,
        "lightgbm_student": LGBMLengthRegressor,
        "lightgbm_hazard": LGBMHazardRegressor,
        "lightgbm_rank": LGBMRankRegressor,
        **BASELINES,
    }
    if name not in known:
        names = ", ".join(sorted([*known, *READERS]))
        raise InputError(f"unknown estimator {name!r}; known: {names}")
    return known[name]


def write(directory: Path, parts: Parts) -> None:
    """Write every file of the artifact."""
    (directory / "estimator").mkdir(parents=True, exist_ok=True)
    parts.estimator.save_files(directory / "estimator")
    _write_object(directory / "calibration.json", parts.conformal.to_json())
    if parts.reading is not None:
        parts.reading.reader.save(directory / "reader")
        levels = parts.reading.conformal.to_json()
        _write_object(directory / "reader" / "calibration.json", levels)
    if parts.causal is not None:
        _write_causal(directory / _CAUSAL, parts.causal)
    for opening in parts.openings:
        _write_opening(directory / f"opening_{opening.tokens}", opening)
    _write_features(directory, parts.features)
    _write_object(directory / "card.json", parts.card | {"format_version": FORMAT_VERSION})


def read(directory: Path) -> Parts:
    """Read an artifact; InputError names the file and the rule it breaks."""
    card = read_object(directory / "card.json")
    if card.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{directory}: artifact format {card.get('format_version')!r}, "
            f"this version reads {FORMAT_VERSION}"
        )
    missing = [key for key in _REQUIRED if key not in card]
    if missing:
        raise InputError(f"{directory / 'card.json'}: the key {missing[0]!r} is missing")
    features = _read_features(directory)
    if features.contract != card["feature_contract"]:
        raise InputError(
            f"{directory}: made for features {card['feature_contract']}, "
            f"these are {features.contract} (layout version {LAYOUT_VERSION})"
        )
    estimator = _read_estimator(directory, card["estimator"])
    columns = len(features.get_feature_names_out())
    if estimator.reads_columns not in (None, columns):
        raise InputError(
            f"{directory}: the estimator reads {estimator.reads_columns} features, "
            f"there are {columns}"
        )
    conformal = ConformalLevels.from_json(read_object(directory / "calibration.json"))
    reading, causal = _read_reading(directory, card), _read_causal(directory / _CAUSAL, card)
    if causal is not None:
        wanted = columns + len(causal.reader.get_feature_names_out())
        if causal.estimator.reads_columns not in (None, wanted):
            raise InputError(
                f"{directory / _CAUSAL}: the estimator reads {causal.estimator.reads_columns} "
                f"features, there are {wanted}"
            )
    openings = _read_openings(directory, card, columns)
    return Parts(features, estimator, conformal, card, reading, causal, openings)


def _read_estimator(directory: Path, wanted: dict[str, Any]) -> LengthRegressor:
    try:
        estimator = estimator_class(wanted["name"])(**wanted["params"])
    except (TypeError, KeyError) as error:
        raise InputError(
            f"{directory / 'card.json'}: the estimator does not fit this version ({error}); "
            "train it again"
        ) from error
    try:
        estimator.load_files(directory / "estimator")
    except KeyError as error:
        raise InputError(f"{directory / 'estimator'}: the key {error} is missing") from error
    return estimator


def _read_reading(directory: Path, card: dict[str, Any]) -> Reading | None:
    if "reader" not in card:
        return None
    # torch and transformers: only where there is a reader
    from lengthwise.predictor.estimators.encoder import BertReader

    reader = BertReader.load(directory / "reader", bool(card["reader"]["int8"]))
    conformal = ConformalLevels.from_json(read_object(directory / "reader" / "calibration.json"))
    return Reading(reader, float(card["reader"]["share"]), conformal)


def _write_causal(directory: Path, causal: CausalReading) -> None:
    """What the artifact holds of a causal reader: which it is, and what was learned with it."""
    reader = causal.reader
    (directory / "estimator").mkdir(parents=True, exist_ok=True)
    causal.estimator.save_files(directory / "estimator")
    _write_object(directory / "calibration.json", causal.conformal.to_json())
    arrays = {name: getattr(reader, f"{name}_") for name in _CAUSAL_ARRAYS}
    np.savez_compressed(directory / "reader.npz", **arrays)
    _write_object(
        directory / "reader.json",
        {
            "params": reader.get_params(),
            "digest": reader.digest_,
            "n_components": reader.n_components_,
            "densest": reader.densest_,
            "gains": reader.gains_,
            **{name: list(getattr(reader, f"{name}_")) for name in _CAUSAL_LISTS},
        },
    )


def _read_causal(directory: Path, card: dict[str, Any]) -> CausalReading | None:
    said = card.get(_CAUSAL)
    if not said or not said["classes"]:
        return None
    settings = read_object(directory / "reader.json")
    with arrays_of(directory / "reader.npz") as arrays:
        params = settings["params"]
        reader = CausalReader(**params | {"alphas": tuple(params["alphas"])})
        for name in _CAUSAL_ARRAYS:
            setattr(reader, f"{name}_", arrays[name])
        for name in _CAUSAL_LISTS:
            setattr(reader, f"{name}_", list(settings[name]))
        reader.digest_, reader.fault_ = settings["digest"], None
        reader.gains_, reader.densest_ = dict(settings["gains"]), float(settings["densest"])
        reader.n_components_ = int(settings["n_components"])
        estimator = _read_estimator(directory, said["estimator"])
    conformal = ConformalLevels.from_json(read_object(directory / "calibration.json"))
    return CausalReading(reader, estimator, conformal)


def _write_opening(directory: Path, opening: OpeningReading) -> None:
    (directory / "estimator").mkdir(parents=True, exist_ok=True)
    opening.estimator.save_files(directory / "estimator")
    _write_object(directory / "calibration.json", opening.conformal.to_json())
    _write_features(directory, opening.features)


def _read_openings(
    directory: Path, card: dict[str, Any], columns: int
) -> tuple[OpeningReading, ...]:
    """What the card names; older ones name none. `columns` are those of the prompts' features."""
    said = card.get("openings") or {}
    found = []
    for tokens, told in said.get("after", {}).items():
        place = directory / f"opening_{tokens}"
        features = _read_features(place)
        estimator = _read_estimator(place, told["estimator"])
        wanted = columns + len(KNOWN_LEVELS) + len(features.get_feature_names_out())
        if estimator.reads_columns not in (None, wanted):
            raise InputError(
                f"{place}: the estimator reads {estimator.reads_columns} features, "
                f"there are {wanted}"
            )
        levels = ConformalLevels.from_json(read_object(place / "calibration.json"))
        found.append(OpeningReading(int(tokens), features, estimator, levels))
    return tuple(found)


def _write_features(directory: Path, features: PromptFeatures) -> None:
    text = features.text_
    _write_object(
        directory / "features.json",
        {
            "blocks": list(features.blocks),
            "classes": features.classes_,
            "text": text.get_params(),
            "n_svd": text.n_svd_,
            "ridge_classes": text.classes_,
            "embedding": _embedding_settings(features),
        },
    )
    arrays = {
        "weights": text.weights_,
        "row_of": text.row_of_,
        "class_offsets": text.class_offsets_,
        "token_fit": features.token_fit_,
    }
    if (embedding := features.embedding_) is not None:
        arrays |= {f"embedding_{name}": getattr(embedding, f"{name}_") for name in _EMBEDDING}
    np.savez_compressed(directory / "features.npz", **arrays)


def _read_features(directory: Path) -> PromptFeatures:
    settings = read_object(directory / "features.json")
    with arrays_of(directory / "features.npz") as arrays:
        return _with_arrays(settings, arrays)


def _with_arrays(settings: dict[str, Any], arrays: dict[str, Any]) -> PromptFeatures:
    text = HashedText(**settings["text"])
    text.weights_, text.row_of_ = in_one_block(arrays["weights"], arrays["row_of"])
    text.n_svd_ = int(settings["n_svd"])
    text.classes_, text.class_offsets_ = list(settings["ridge_classes"]), arrays["class_offsets"]
    features = PromptFeatures(HashedText(**settings["text"]), tuple(settings["blocks"]))
    features.text_, features.token_fit_ = text, arrays["token_fit"]
    features.classes_ = list(settings["classes"])
    features.embedding_ = None
    if given := settings.get("embedding"):
        embedding = SentenceEmbedding(**given["params"])
        for name in _EMBEDDING:
            setattr(embedding, f"{name}_", arrays[f"embedding_{name}"])
        embedding.n_components_ = int(given["n_components"])
        embedding.classes_ = list(given["classes"])
        features.embedding = SentenceEmbedding(**given["params"])
        features.embedding_ = embedding
    return features


def _embedding_settings(features: PromptFeatures) -> dict[str, Any] | None:
    embedding = features.embedding_
    if embedding is None:
        return None
    return {
        "params": embedding.get_params(),
        "n_components": embedding.n_components_,
        "classes": embedding.classes_,
    }


def _write_object(path: Path, document: dict[str, Any]) -> None:
    write_whole(path, json.dumps(document, indent=1) + "\n")
