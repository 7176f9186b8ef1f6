"""Estimators of answers that have begun, learned from the first tokens of known answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lengthwise.data.errors import InputError
from lengthwise.data.tokens import DEFAULT_TOKENIZER, load_counter
from lengthwise.predictor.conformal import ConformalLevels
from lengthwise.predictor.distribution import DEFAULT_LEVELS, Floats
from lengthwise.predictor.estimators.blend import LGBMBlendRegressor
from lengthwise.predictor.features.columns import PromptFeatures
from lengthwise.predictor.features.opening_text import OPENING_TOKENS, opening_of
from lengthwise.predictor.features.text import HashedText
from lengthwise.predictor.fitting.held_out import crossed_levels
from lengthwise.predictor.opening_reading import OPENING_BLOCKS, OpeningReading, columns_of

_LEAST_ROWS = 300
_TEXT = {"bits": 15, "components": 24}


def fit_openings(
    table: pd.DataFrame,
    rows: NDArray[np.floating],
    known: Floats,
    censored: NDArray[np.bool_],
    *,
    seed: int,
    n_jobs: int = 1,
) -> tuple[tuple[OpeningReading, ...], dict[str, Any]]:
    """An estimator for each of OPENING_TOKENS, and what a card says of them.

    ``table`` are the rows to learn from, ``rows`` their features, (n, f), ``known`` what the
    estimator of prompts says of each at `opening_reading.KNOWN_LEVELS` unseen, (n, 5), and
    ``censored``, (n,), which answers were cut off. Rows without the answer's text are left out;
    where too few are left there is no estimator. InputError where the tokenizer that counted the
    table cannot be had.
    """
    answers = table["response"] if "response" in table else pd.Series([None] * len(table))
    has_text = answers.notna().to_numpy()
    tokens = table["output_tokens"].to_numpy(np.float64)
    card: dict[str, Any] = {"without_text": int((~has_text).sum()), "after": {}}
    found: list[OpeningReading] = []
    if not has_text.any():
        return (), card
    count = load_counter(str(table.attrs.get("tokenizer") or DEFAULT_TOKENIZER))
    for after in OPENING_TOKENS:
        running = np.flatnonzero(has_text & (tokens > after))
        if running.size < _LEAST_ROWS:
            continue
        openings = [opening_of(answer, after, count) for answer in answers.iloc[running]]
        reading = _fitted(
            after,
            openings,
            table.iloc[running],
            rows[running],
            known[running],
            censored[running],
            seed,
            n_jobs,
        )
        found.append(reading)
        card["after"][str(after)] = {
            "rows": int(running.size),
            "estimator": {"name": "lightgbm", "params": reading.estimator.get_params()},
        }
    return tuple(found), card


def check_openings(table: pd.DataFrame) -> None:
    """InputError where a table has no answers to learn openings from."""
    if "response" not in table or table["response"].isna().all():
        raise InputError("openings are learned from answers, and these rows hold none")


def _fitted(
    after: int,
    openings: Sequence[str],
    table: pd.DataFrame,
    rows: NDArray[np.floating],
    known: Floats,
    censored: NDArray[np.bool_],
    seed: int,
    n_jobs: int,
) -> OpeningReading:
    y = table["output_tokens"].to_numpy(np.float64)
    groups = table["group"].astype(str).tolist()
    features = PromptFeatures(HashedText(random_state=seed, **_TEXT), OPENING_BLOCKS)
    texts = pd.DataFrame({"prompt": list(openings), "slo_class": table["slo_class"].tolist()})
    read = features.fit_transform(texts, y, groups)
    estimator = LGBMBlendRegressor(random_state=seed, n_jobs=n_jobs)
    columns = columns_of(rows, known, read)
    estimator.fit(columns, y, censored=censored, groups=groups)
    levels = ConformalLevels.none(DEFAULT_LEVELS)
    if estimator.held_out_:
        levels = crossed_levels(estimator, table, {}, seed)
    return OpeningReading(after, features, estimator, levels)
