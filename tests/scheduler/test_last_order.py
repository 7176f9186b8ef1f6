"""The last plan's order among those who wait now."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.plan.starts.last_order import LastOrder

TIMES = st.lists(st.integers(0, 60), min_size=1, max_size=30, unique=True)


def test_nothing_is_remembered_at_first():
    assert LastOrder().among(np.array([1.0, 2.0]), np.array([1, 0])) is None


def test_strangers_have_no_last_order():
    last = LastOrder()
    last.remember(np.array([1.0, 2.0]))
    assert last.among(np.array([3.0, 4.0]), np.array([0, 1])) is None


def test_who_is_new_stands_behind_the_neighbour():
    last = LastOrder()
    last.remember(np.array([30.0, 10.0, 20.0]))
    queue_s = np.array([10.0, 20.0, 30.0, 40.0])
    found = last.among(queue_s, np.array([1, 3, 0, 2]))
    assert found is not None
    assert queue_s[found].tolist() == [30.0, 10.0, 20.0, 40.0]


@given(TIMES, TIMES, st.randoms(use_true_random=False))
def test_it_is_a_permutation_that_keeps_what_was(then, now, random):
    last = LastOrder()
    last.remember(np.array(then, dtype=np.float64))
    queue_s = np.array(now, dtype=np.float64)
    base = list(range(len(now)))
    random.shuffle(base)
    found = last.among(queue_s, np.array(base, dtype=np.int64))
    known = [t for t in then if t in now]
    if found is None:
        assert not known
        return
    assert sorted(found.tolist()) == list(range(len(now)))
    assert [t for t in queue_s[found].tolist() if t in known] == known
