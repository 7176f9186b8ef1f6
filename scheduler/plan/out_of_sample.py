"""Plans judged on lengths that they were not made for.

A search finds the plan that is best for the lengths it was given, and some of that is luck: where
lengths are uncertain, what it gained on one draw is partly lost on the next (the optimiser's
curse; in stochastic programming a candidate is judged on a sample of its own, Kleywegt et al.
2002). So the last word among a few plans is had by draws that none of them has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lengthwise.scheduler.plan.search import Parts, Picture, value_of

DRAWS = 2


def all_known(picture: Picture) -> bool:
    """Whether no length is uncertain, so that every draw is the same."""
    strata = picture.rows.strata
    return bool((strata == strata[:, :1]).all())


def redrawn(picture: Picture, rng: np.random.Generator) -> Picture:
    """The same moment with every length drawn from its distribution."""
    strata = picture.rows.strata
    drawn = strata[np.arange(len(strata)), rng.integers(strata.shape[1], size=len(strata))]
    return picture._replace(rows=picture.rows._replace(need=np.ceil(drawn)))


def mean_values(
    picture: Picture,
    plans: Sequence[tuple[Parts, bool]],
    rng: np.random.Generator,
    draws: int = DRAWS,
) -> list[float]:
    """The mean value of each plan, with whether it skips the late, over the same few draws."""
    pictures = [redrawn(picture, rng) for _ in range(draws)]
    return [
        sum(value_of(other, parts, skip_late) for other in pictures) / draws
        for parts, skip_late in plans
    ]
