"""The default: a booster and small networks that see length differently, averaged in log-tokens.

The Student t (`student`) finds location and spread from few rows and extrapolates; a hazard
learns any shape, such as answers that run to the cap: by networks (`nets`), which see sums where
trees see steps, or by a booster (`hazard`), which is slower and adds nothing beside them. The mean
of their quantiles at each level is better than any and cannot cross.

Each part is a mean of members that leave a fold of the rows out, so the whole has been trained on
every row and yet has predicted every row unseen: shares and calibration need no rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.folded import FoldedRegressor
from lengthwise.predictor.estimators.hazard import LGBMHazardRegressor
from lengthwise.predictor.estimators.nets import MLPHazardRegressor
from lengthwise.predictor.estimators.packed_blend import PackedBlend
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.estimators.student import LGBMLengthRegressor
from lengthwise.predictor.folds import grouped_folds

_FOLD_ROWS = 50  # fewer rows a fold say nothing of how wrong its member is


@dataclass(eq=False, repr=False)
class LGBMBlendRegressor(LengthRegressor):
    """Weighted mean of the log-quantiles of a Student-t booster and networks or a hazard booster.

    Parameters
    ----------
    parts : tuple of str
        "student" and one or both of "hazard" and "nets".
    n_estimators : int
        Boosting rounds of each member of a booster.
    learning_rate, num_leaves, feature_fraction
        As in LightGBM; `num_leaves` is that of the Student t, the hazard has twice as many.
    bins : int
        Of lengths, for networks and hazard.
    epochs : int
        Of the networks.
    folds : int
        Members of each part; 1 for one that sees all rows and holds none out.
    hazard_share : float
        Weight of the hazard beside the Student t; `predictor.fitting.fit` chooses both shares on
        held-out rows.
    net_share : float
        Weight of the networks beside the boosters.
    random_state : int
    n_jobs : int
        Threads for training; prediction uses one.
    """

    learned = ("parts",)
    unwritten: ClassVar[Mapping[str, Any]] = {"parts": ["student", "hazard"]}
    holds_out = True

    parts: tuple[str, ...] = ("student", "nets")
    n_estimators: int = 50
    learning_rate: float = 0.14
    num_leaves: int = 31
    feature_fraction: float = 0.3
    bins: int = 20
    epochs: int = 30
    folds: int = 6
    hazard_share: float = 0.5
    net_share: float = 0.5
    random_state: int = 0
    n_jobs: int = 1

    def _fit(
        self,
        X: Floats,
        log_y: Floats,
        weight: Floats,
        censored: NDArray[np.bool_],
        groups: NDArray[np.generic] | None = None,
    ) -> None:
        if self.parts[:1] != ("student",) or set(self.parts) - {"student", "hazard", "nets"}:
            raise ValueError(f"parts are student, then hazard or nets or both, got {self.parts}")
        fold = self._fold_of_rows(len(X), groups)
        self._make_parts(self.parts)
        self.held_out_: dict[str, Floats] = {}
        for name, part in self.fitted():
            part.fit_members(X, log_y, weight, censored, fold)
            if fold is not None:
                self.held_out_[name] = part.held_out_scores(X, fold)
        self._pack()

    def fitted(self) -> Iterator[tuple[str, FoldedRegressor]]:
        """Names and estimators of the parts in use."""
        for name in self.parts_:
            yield name, getattr(self, f"{name}_")

    def held_out_quantiles(
        self, levels: Floats, rows: NDArray[np.intp] | slice = slice(None)
    ) -> dict[str, Floats]:
        """Log-tokens of training rows by each part's members that have not seen them, (m, q).

        Empty where there were too few rows to hold any out, or after `forget_held_out`.
        """
        return {
            name: part.quantiles_of(self.held_out_[name][rows], levels)
            for name, part in self.fitted()
            if name in self.held_out_
        }

    def forget_held_out(self) -> None:
        """Let go of what is needed until shares and calibration are found."""
        self.held_out_ = {}

    def mixed(self, quantiles: Mapping[str, Floats]) -> Floats:
        """The whole's log-quantiles from its parts', (n, q)."""
        mean = quantiles["student"]
        if "hazard" in quantiles:
            share = self.hazard_share
            mean = (1.0 - share) * mean + share * quantiles["hazard"]
        if "nets" in quantiles:
            mean = (1.0 - self.net_share) * mean + self.net_share * quantiles["nets"]
        return mean

    def importances(self) -> Floats:
        """As in `LengthRegressor`: the mean of the boosters."""
        shares = [self.student_.importances()]
        if "hazard" in self.parts_:
            shares.append(self.hazard_.importances())
        return np.mean(shares, axis=0)

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Weighted mean of the parts, (n, q)."""
        if self._packed is not None and X.dtype == np.float32:
            return self._packed.log_quantiles(X, levels, float(self.net_share))
        return self.mixed({n: part.predict_log_quantiles(X, levels) for n, part in self.fitted()})

    def drop(self, name: str) -> None:
        """Do without a part, where its share was found to be nothing."""
        self.parts_ = [kept for kept in self.parts_ if kept != name]
        self._pack()

    def save_files(self, directory: Path) -> None:
        """As in `LengthRegressor`, and a directory for each part."""
        super().save_files(directory)
        for name, part in self.fitted():
            (directory / name).mkdir(exist_ok=True)
            part.save_files(directory / name)

    def load_files(self, directory: Path) -> None:
        """As in `LengthRegressor`."""
        super().load_files(directory)
        self._make_parts(self.parts_)
        self.held_out_ = {}
        for name, part in self.fitted():
            part.load_files(directory / name)
        self._pack()

    def _pack(self) -> None:
        """Have the default pair of parts ready for a server's rows."""
        is_default = self.parts_ == ["student", "nets"]
        self._packed = PackedBlend.of(self.student_, self.nets_) if is_default else None

    def _make_parts(self, names: Sequence[str]) -> None:
        common = {"random_state": self.random_state, "n_jobs": self.n_jobs}
        boosted = common | {
            "n_estimators": self.n_estimators,
            "learning_rate": self.learning_rate,
        }
        self.parts_ = [str(name) for name in names]
        self.student_ = LGBMLengthRegressor(
            num_leaves=self.num_leaves, feature_fraction=self.feature_fraction, **boosted
        )
        self.hazard_ = LGBMHazardRegressor(
            bins=self.bins,
            num_leaves=2 * self.num_leaves,
            feature_fraction=min(1.0, 1.7 * self.feature_fraction),
            **boosted,
        )
        self.nets_ = MLPHazardRegressor(bins=self.bins, epochs=self.epochs, **common)

    def fold_count(self, n: int, groups: ArrayLike | None = None) -> int:
        """Members of each part, given n rows of these groups, (n,)."""
        count = n if groups is None else len(np.unique(np.asarray(groups).astype(str)))
        return max(1, min(self.folds, n // _FOLD_ROWS, count))

    def _fold_of_rows(self, n: int, groups: ArrayLike | None) -> NDArray[np.intp] | None:
        folds = self.fold_count(n, groups)
        if folds == 1:
            return None
        labels = None if groups is None else np.asarray(groups).astype(str).tolist()
        return grouped_folds(n, labels, folds, self.random_state)
