from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import load_table
from lengthwise.data.splits import SPLITS, split_of, split_table

groups = st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=60)


@given(groups, st.integers(0, 5))
def test_a_group_is_on_one_side_whatever_else_is_there(names, seed):
    sides = split_of(names, seed)
    assert set(sides) <= set(SPLITS)
    by_group = dict(zip(names, sides, strict=True))
    assert [by_group[name] for name in names] == list(sides)
    assert list(split_of(names[::-1], seed)) == list(sides[::-1])


def test_shares_are_as_stated():
    sides = split_of([f"g{i}" for i in range(20_000)])
    for side, share in SPLITS.items():
        assert np.mean(sides == side) == pytest.approx(share, abs=0.01)


def test_seed_changes_the_sides():
    names = [f"g{i}" for i in range(200)]
    assert (split_of(names, 0) != split_of(names, 1)).any()


def test_another_process_agrees():
    names = [f"g{i}" for i in range(20)]
    code = f"from lengthwise.data.splits import split_of; print(*split_of({names!r}))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == list(split_of(names))


def test_table_is_parted_without_loss(packs):
    table = load_table("gpt35")
    parts = split_table(table)
    assert sum(map(len, parts.values())) == len(table)
    assert sorted(id_ for part in parts.values() for id_ in part["id"]) == sorted(table["id"])
    assert all(part.attrs == table.attrs for part in parts.values())


def test_a_group_must_be_text():
    with pytest.raises(InputError, match="a group must be text, got 5"):
        split_of(["a", 5])
