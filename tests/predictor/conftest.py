"""A small table with a learnable signal, and a predictor fitted on it once."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor

SUBJECTS = [
    "rivers",
    "trains",
    "mountains",
    "cheese",
    "robots",
    "violins",
    "planets",
    "bees",
    "glaciers",
    "castles",
]


def make_rows(n: int, seed: int) -> pd.DataFrame:
    """Essays run to the length asked for, calls stay short, lists grow with their items."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        subject = SUBJECTS[rng.integers(len(SUBJECTS))]
        kind = rng.integers(3)
        if kind == 0:
            asked = int(rng.choice([50, 100, 200, 400]))
            prompt = f"Write an essay about {subject} in {asked} words."
            mean, name = 1.4 * asked, "chat"
        elif kind == 1:
            items = int(rng.integers(2, 12))
            prompt = f"List {items} facts about {subject}, one bullet each."
            mean, name = 25.0 * items, "chat"
        else:
            prompt = f'Call the tool for {subject}.\n{{"name": "f", "required": ["a"]}}'
            mean, name = 20.0, "agent_step"
        rows.append(
            {
                "id": f"{i:016x}",
                "group": f"g{i}",
                "source": "made",
                "task": ["essay", "list", "call"][kind],
                "slo_class": name,
                "model": "made-1",
                "prompt_tokens": len(prompt.split()) + 2,
                "output_tokens": int(max(1, round(mean * rng.lognormal(0.0, 0.2)))),
                "prompt": prompt,
                "censored": False,
            }
        )
    return pd.DataFrame(rows)


@pytest.fixture(scope="session")
def tables() -> dict[str, pd.DataFrame]:
    return {
        "train": make_rows(900, 0),
        "calibration": make_rows(400, 1),
        "test": make_rows(600, 2),
    }


@pytest.fixture(scope="session")
def predictor(tables: dict[str, pd.DataFrame]) -> LengthPredictor:
    return fit_predictor(
        tables["train"], tables["calibration"], seed=3, n_estimators=60, learning_rate=0.1
    )
