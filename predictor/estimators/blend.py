"""The default: boosters and small networks that see length differently, averaged in log-tokens.

The Student t (`student`) finds location and spread from few rows and extrapolates; the hazard
(`hazard`) learns any shape, such as answers that run to the cap; networks (`nets`) see sums where
trees see steps. The mean of their quantiles at each level is better than any and cannot cross.

Each part is a mean of members that leave a fold of the rows out, so the whole has been trained on
every row and yet has predicted every row unseen: shares and calibration need no rows of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.predictor.distribution import Floats
from lengthwise.predictor.estimators.folded import FoldedRegressor
from lengthwise.predictor.estimators.hazard import LGBMHazardRegressor
from lengthwise.predictor.estimators.nets import MLPLengthRegressor
from lengthwise.predictor.estimators.regressor import LengthRegressor
from lengthwise.predictor.estimators.student import LGBMLengthRegressor
from lengthwise.predictor.folds import grouped_folds

_FOLD_ROWS = 50  # fewer rows a fold say nothing of how wrong its member is


@dataclass(eq=False, repr=False)
class LGBMBlendRegressor(LengthRegressor):
    """Weighted mean of the log-quantiles of a Student-t booster, a hazard booster and networks.

    Parameters
    ----------
    n_estimators : int
        Boosting rounds of each member of each booster.
    learning_rate, num_leaves, feature_fraction
        As in LightGBM; `num_leaves` is that of the Student t, the hazard has twice as many.
    hazard_bagging : float
        Share of the hazard's rows that a tree sees: an answer is one for every bin it reached.
    bins : int
        Of the hazard.
    folds : int
        Members of each part; 1 for a single one that sees all rows and holds none out.
    epochs : int
        Of the networks; 0 leaves them out.
    hazard_share : float
        Weight of the hazard among the boosters; `predictor.fitting.fit` chooses both shares on
        held-out rows.
    net_share : float
        Weight of the networks in the whole.
    random_state : int
    n_jobs : int
        Threads for training; prediction uses one.
    """

    learned = ("with_nets",)
    unwritten: ClassVar[Mapping[str, Any]] = {"with_nets": False}
    holds_out = True

    n_estimators: int = 80
    learning_rate: float = 0.15
    num_leaves: int = 15
    feature_fraction: float = 0.3
    hazard_bagging: float = 0.4
    bins: int = 20
    folds: int = 4
    epochs: int = 30
    hazard_share: float = 0.5
    net_share: float = 0.25
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
        fold = self._fold_of_rows(len(X), groups)
        self._make_parts(self.epochs > 0)
        self.held_out_: dict[str, Floats] = {}
        for name, part in self.parts():
            part.fit_members(X, log_y, weight, censored, fold)
            if fold is not None:
                self.held_out_[name] = part.held_out_scores(X, fold)

    def parts(self) -> Iterator[tuple[str, FoldedRegressor]]:
        """Names and estimators of the fitted model: student, hazard and, if any, nets."""
        yield "student", self.student_
        yield "hazard", self.hazard_
        if self.nets_ is not None:
            yield "nets", self.nets_

    def held_out_quantiles(
        self, levels: Floats, rows: NDArray[np.intp] | slice = slice(None)
    ) -> dict[str, Floats]:
        """Log-tokens of training rows by each part's members that have not seen them, (m, q).

        Empty where there were too few rows to hold any out, or after `forget_held_out`.
        """
        return {
            name: part.quantiles_of(self.held_out_[name][rows], levels)
            for name, part in self.parts()
            if name in self.held_out_
        }

    def forget_held_out(self) -> None:
        """Let go of what is needed until shares and calibration are found."""
        self.held_out_ = {}

    def mixed(self, quantiles: Mapping[str, Floats]) -> Floats:
        """The whole's log-quantiles from its parts', (n, q)."""
        share = self.hazard_share
        boosted = (1.0 - share) * quantiles["student"] + share * quantiles["hazard"]
        if "nets" not in quantiles:
            return boosted
        return (1.0 - self.net_share) * boosted + self.net_share * quantiles["nets"]

    def importances(self) -> Floats:
        """As in `LengthRegressor`: the mean of both boosters."""
        return (self.student_.importances() + self.hazard_.importances()) / 2.0

    def predict_log_quantiles(self, X: NDArray[np.floating], levels: Floats) -> Floats:
        """Weighted mean of the parts, (n, q)."""
        return self.mixed({n: part.predict_log_quantiles(X, levels) for n, part in self.parts()})

    def save_files(self, directory: Path) -> None:
        """As in `LengthRegressor`, and a directory for each part."""
        super().save_files(directory)
        for name, part in self.parts():
            (directory / name).mkdir(exist_ok=True)
            part.save_files(directory / name)

    def load_files(self, directory: Path) -> None:
        """As in `LengthRegressor`."""
        super().load_files(directory)
        self._make_parts(self.with_nets_)
        self.held_out_ = {}
        for name, part in self.parts():
            part.load_files(directory / name)

    def drop_nets(self) -> None:
        """Do without the networks, where their share was found to be nothing."""
        self.nets_, self.with_nets_ = None, False

    def _make_parts(self, with_nets: bool) -> None:
        common = {"random_state": self.random_state, "n_jobs": self.n_jobs}
        boosted = common | {
            "n_estimators": self.n_estimators,
            "learning_rate": self.learning_rate,
        }
        self.student_ = LGBMLengthRegressor(
            num_leaves=self.num_leaves, feature_fraction=self.feature_fraction, **boosted
        )
        self.hazard_ = LGBMHazardRegressor(
            bins=self.bins,
            num_leaves=2 * self.num_leaves,
            feature_fraction=min(1.0, 1.7 * self.feature_fraction),
            bagging_fraction=self.hazard_bagging,
            **boosted,
        )
        self.with_nets_ = with_nets
        self.nets_ = MLPLengthRegressor(epochs=self.epochs, **common) if with_nets else None

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
