from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.table import (
    COLUMNS,
    make_table,
    prompt_group,
    prompt_id,
    sample_rows,
    take_rows,
    validate,
)


def columns(rows: int = 4) -> dict[str, list]:
    return {
        "id": [f"i{n}" for n in range(rows)],
        "group": [f"g{n}" for n in range(rows)],
        "source": ["s"] * rows,
        "task": ["t"] * rows,
        "slo_class": ["chat"] * rows,
        "model": ["m"] * rows,
        "prompt_tokens": list(range(1, rows + 1)),
        "output_tokens": list(range(1, rows + 1)),
        "prompt": [f"p{n}" for n in range(rows - 1)] + [None],
        "license": ["MIT"] * rows,
    }


def table(**changes) -> pd.DataFrame:
    return make_table(columns() | changes, source_label="x", data_sha256="y", tokenizer="z")


def test_defaults_types_and_provenance():
    made = table()
    assert list(made.columns) == list(COLUMNS)
    assert made["prompt_tokens"].dtype == np.int64
    assert made["censored"].dtype == bool
    assert made["prompt"].iloc[-1] is None
    assert made["response"].tolist() == [None] * 4
    assert made.attrs == {"source_label": "x", "data_sha256": "y", "tokenizer": "z"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_tokens": [1, 2, 0, 4]}, "row 2: output_tokens must be a whole number .* got 0"),
        ({"output_tokens": [1, -2, 3, 4]}, "row 1: output_tokens"),
        ({"prompt_tokens": [1, 2, 3.5, 4]}, "row 0: prompt_tokens"),
        ({"prompt_tokens": [1, None, 3, 4]}, "prompt_tokens"),
        ({"prompt_tokens": [True, 2, 3, 4]}, "row 0: prompt_tokens"),
        ({"prompt": ["a", 2, "c", "d"]}, "row 1: prompt must be text or None, got 2"),
        ({"group": ["a", "", "c", "d"]}, "row 1: group must be text"),
        ({"slo_class": ["chat", "a b", "chat", "chat"]}, "slo_class must be"),
        ({"censored": [0, 1, 0, 1]}, "row 0: censored must be a bool"),
    ],
)
def test_a_bad_cell_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        table(**changes)


def test_missing_column_and_no_rows():
    with pytest.raises(InputError, match="needs the column group"):
        validate(table().drop(columns="group"))
    with pytest.raises(InputError, match="at least one row"):
        validate(table().iloc[:0])


def test_groups_ignore_case_spacing_and_punctuation_only():
    assert prompt_group("Hello,  World!") == prompt_group("hello world")
    assert prompt_group("hello world 2") != prompt_group("hello world 3")
    assert prompt_group("!!") != prompt_group("??")
    assert prompt_id("a") != prompt_id("A")
    assert len(prompt_id("\ud83d")) == 16


def test_sample_is_stable_ordered_and_keeps_attrs():
    made = table()
    part = sample_rows(made, 2)
    assert part["id"].tolist() == sample_rows(made, 2)["id"].tolist() == sorted(part["id"])
    assert part.attrs == made.attrs
    assert sample_rows(made, 99) is made
    with pytest.raises(InputError, match="limit must be at least 1, got 0"):
        sample_rows(made, 0)


def test_rows_by_mask_and_by_position_agree():
    made = table()
    by_mask = take_rows(made, np.array([False, True, False, True]))
    pd.testing.assert_frame_equal(by_mask, take_rows(made, np.array([1, 3])))
