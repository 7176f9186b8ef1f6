"""Lengths are learned in the order of starts: each once, nobody skipped for being long."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.scheduler.serving.engine.observed.start_order import InStartOrder

LONG = 300.0


def request(name):
    return SimpleNamespace(request_id=str(name))


class Engine:
    """Requests that start one a second, each at ten tokens a second."""

    def __init__(self, lengths, most_held=4096):
        self.lengths = lengths
        self.now = 0.0
        self.order = InStartOrder(self.generated, lambda tracked: LONG, most_held)
        self.told = []

    def generated(self, request_id):
        return int(10 * (self.now - int(request_id)))

    def play(self, until=float("inf")):
        starts = [(float(i), 0, i) for i in range(len(self.lengths))]
        ends = [(i + length / 10, 1, i) for i, length in enumerate(self.lengths)]
        for self.now, ending, i in sorted(starts + ends):
            if self.now > until:
                break
            if ending:
                self.order.ended(request(i), self.lengths[i])
                self.told += self.order.ready()
            else:
                self.order.started(request(i))
        return [(int(told.tracked.request_id), told.output_tokens) for told in self.told]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60))
@settings(deadline=None)
def test_each_is_told_once_in_the_order_of_starts(lengths):
    engine = Engine(lengths)
    told = engine.play()
    assert [i for i, _ in told] == list(range(len(lengths)))
    assert len(engine.order) == 0
    for i, tokens in told:
        assert tokens == lengths[i] or (LONG < tokens < lengths[i])


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=60), st.integers(1, 10))
@settings(deadline=None)
def test_no_more_are_held_than_may_be(lengths, most_held):
    engine = Engine(lengths, most_held)
    told = [i for i, _ in engine.play()]
    assert told == sorted(set(told))
    assert len(engine.order) <= most_held


def test_the_first_to_end_do_not_speak_for_all():
    """Of a burst that started together, the early answers alone look a third as long."""
    rng = np.random.default_rng(1)
    lengths = np.exp(rng.normal(5.0, 0.6, 2000)).astype(int) + 1
    now = 12.0
    order = InStartOrder(lambda request_id: int(10 * now), lambda tracked: LONG)
    for i in range(len(lengths)):
        order.started(request(i))
    early = [i for i in range(len(lengths)) if lengths[i] <= 10 * now]
    for i in early:
        order.ended(request(i), int(lengths[i]))
    assert np.median(lengths[early]) < 0.7 * np.median(lengths)
    told = list(order.ready())
    assert len(told) < 0.1 * len(early)


def test_who_was_cut_off_or_left_tells_nothing_and_holds_nobody():
    order = InStartOrder(lambda request_id: 5, lambda tracked: LONG)
    for i in range(3):
        order.started(request(i))
    order.ended(request(1), 40)
    assert list(order.ready()) == []
    order.ended(request(0), None)
    assert [told.output_tokens for told in order.ready()] == [40]
    order.ended(request(2), 7, cut=True)
    assert [told.cut for told in order.ready()] == [True]


def test_one_that_ended_without_a_slot_is_told_in_its_place():
    order = InStartOrder(lambda request_id: 5, lambda tracked: LONG)
    order.started(request(0))
    order.ended(request(9), 12)
    order.ended(request(0), 30)
    assert [told.output_tokens for told in order.ready()] == [30, 12]
