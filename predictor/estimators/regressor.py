"""What every length estimator has in common: scikit-learn's contract, and a distribution."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, RegressorMixin, TransformerMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from lengthwise.data.files import read_object
from lengthwise.predictor.distribution import DEFAULT_LEVELS, Floats, LengthDistribution


class TextTransformer(TransformerMixin, BaseEstimator):
    """Texts to numeric columns: what scikit-learn is told of every such transformer."""

    def __sklearn_tags__(self):  # type: ignore[no-untyped-def]
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


class LengthRegressor(RegressorMixin, BaseEstimator):
    """Numeric features to the distribution of a length.

    A subclass implements `_fit` and `predict_log_quantiles`, and names in `learned` the numbers
    and arrays that fitting sets (`edges` is the attribute `edges_`); what older files lack of them
    is in `unwritten`. Targets below one token count as one. A row marked in `censored` says that
    the answer is at least as long as its target.
    """

    learned: ClassVar[tuple[str, ...]] = ()
    unwritten: ClassVar[Mapping[str, Any]] = {}
    holds_out: ClassVar[bool] = False  # whether fitting predicts its own rows out of fold

    @property
    def reads_columns(self) -> int | None:
        """How many feature columns the fitted model reads; None if any number will do."""
        return getattr(self, "n_features_in_", None)

    def __sklearn_tags__(self):  # type: ignore[no-untyped-def]
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.regressor_tags.poor_score = True  # targets below one token are outside its domain
        return tags

    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
        censored: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit on features (n, f), lengths (n,) in tokens, and a mask of lower bounds (n,).

        `groups`, (n,), are what an estimator that holds rows out may not part.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, **self._finite())
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        mask = np.zeros(y.shape, bool) if censored is None else np.asarray(censored, bool)
        if mask.shape != y.shape:
            raise ValueError(f"censored must have shape {y.shape}, got {mask.shape}")
        used = weight > 0
        if not used.any():
            raise ValueError("sample_weight must be positive somewhere, got all zero")
        rows = X[used], np.log(np.maximum(y[used], 1.0)), weight[used], mask[used]
        if self.holds_out and groups is not None:
            self._fit(*rows, groups=np.asarray(groups)[used])
        else:
            self._fit(*rows)
        return self

    def importances(self) -> Floats | None:
        """Share of each feature column, (f,), in what the boosters gained; None without boosters.

        Gain in training, so a column with many values looks better than it is: read it beside the
        ablation (`python -m benchmarks.predictor.accuracy --blocks`).
        """
        return None

    def predict_distribution(
        self, X: ArrayLike, levels: Sequence[float] = DEFAULT_LEVELS
    ) -> LengthDistribution:
        """Distributions of n lengths on a grid of levels."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False, **self._finite())
        logs = self.predict_log_quantiles(X, np.asarray(levels, np.float64))
        return LengthDistribution.from_rows(levels, np.exp(np.clip(logs, 0.0, 40.0)))

    def predict(self, X: ArrayLike) -> Floats:
        """Median length in tokens, (n,)."""
        return self.predict_distribution(X).median()

    @staticmethod
    def _finite() -> dict[str, str]:
        return {"ensure_all_finite": "allow-nan"}

    @abstractmethod
    def _fit(
        self, X: Floats, log_y: Floats, weight: Floats, censored: NDArray[np.bool_]
    ) -> None: ...

    @abstractmethod
    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Log-tokens at the levels, (n, q), of validated rows: the serving path."""

    def save_files(self, directory: Path) -> None:
        """Write what was learned as text: `estimator.json`."""
        numbers = {name: np.asarray(getattr(self, f"{name}_")).tolist() for name in self.learned}
        text = json.dumps(numbers | {"n_features": self.n_features_in_})
        (directory / "estimator.json").write_text(text)

    def load_files(self, directory: Path) -> None:
        """Read what `save_files` wrote; the parameters are set already.

        InputError where a file is missing or truncated, KeyError where a number is missing.
        """
        numbers = read_object(directory / "estimator.json")
        numbers = {name.removesuffix("_"): value for name, value in numbers.items()}
        for name in self.learned:
            value = numbers[name] if name in numbers else self.unwritten[name]
            setattr(self, f"{name}_", np.array(value) if isinstance(value, list) else value)
        self.n_features_in_ = int(numbers["n_features"])
