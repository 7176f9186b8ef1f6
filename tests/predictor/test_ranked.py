"""Values in order, against numpy to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.predictor.serving.ranked import Ranked

NUMBERS = st.floats(-50, 50, allow_subnormal=False)


@given(st.lists(NUMBERS, min_size=1, max_size=60), st.data())
def test_median_and_quantiles_are_numpys_to_the_bit(values: list[float], data: st.DataObject):
    ranked = Ranked()
    for value in values:
        ranked.add(value)
    gone = data.draw(st.lists(st.sampled_from(range(len(values))), unique=True))
    for place in gone[: len(values) - 1]:
        ranked.remove(values[place])
    left = [v for i, v in enumerate(values) if i not in gone[: len(values) - 1]]
    assert len(ranked) == len(left)
    assert ranked.median() == np.median(left)
    for level in (0.0, 0.1, 0.25, 0.5, 0.9, 0.99, 1.0):
        assert ranked.quantile(level) == np.quantile(left, level)
    for value in (left[0], 0.0):
        assert ranked.above(value) == sum(v > value for v in left)


def test_of_nothing_there_is_no_quantile():
    for ask in (Ranked().median, lambda: Ranked().quantile(0.5)):
        with pytest.raises(IndexError):
            ask()
