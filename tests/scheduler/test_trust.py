"""Promises held to account."""

from __future__ import annotations

from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.scheduler.plan.feedback import trust as t
from lengthwise.scheduler.plan.feedback.trust import PARTS, Trust


class Story:
    """Rows promised and ended one after another."""

    def __init__(self, seed: int = 0) -> None:
        self.trust, self.rng, self.names = Trust(), np.random.default_rng(seed), count()
        self.now_s = 0.0

    def live(self, rows: int, promised: float, without: float, met: float, part: str = "slots"):
        """``rows`` are promised ``promised``, and are met with probability ``met``."""
        for _ in range(rows):
            self.now_s += 0.01
            name = np.array([float(next(self.names))])
            self.trust.promise(self.now_s, name, np.array([promised]), {part: np.array([without])})
            self.trust.finished(float(name[0]), bool(self.rng.random() < met))
        return self

    def allows(self, part: str = "slots") -> bool:
        return self.trust.allows(part, self.now_s)


@pytest.mark.parametrize("part", PARTS)
def test_promises_that_come_true_keep_every_part(part):
    story = Story().live(2000, 0.8, 0.6, 0.8, part)
    assert all(story.allows(other) for other in PARTS)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_breaks_its_promise_is_withdrawn_alone(part):
    story = Story().live(400, 0.8, 0.75, 0.3, part)
    assert [other for other in PARTS if not story.allows(other)] == [part]


def test_what_is_still_better_than_without_it_stays():
    """Less came than was promised, but its absence was said to be worse than what came."""
    story = Story().live(1000, 0.8, 0.3, 0.6)
    assert story.allows()


def test_a_few_rows_prove_nothing():
    assert Story().live(t.LEAST - 1, 1.0, 1.0, 0.0).allows()
    assert not Story().live(t.LEAST, 1.0, 1.0, 0.0).allows()


def withdrawn(part: str = "slots") -> Story:
    """A part that has just broken its promises."""
    story = Story()
    while story.allows(part):
        story.live(1, 0.9, 0.9, 0.0, part)
    return story


def test_a_part_comes_back_when_the_plans_without_it_keep_their_promises():
    story = withdrawn().live(t.WINDOW, 0.7, 0.7, 0.7)
    assert not story.allows()  # however well they do, not at once
    story.now_s += t.LEAST_AWAY_S
    assert story.allows()
    story.live(t.WINDOW, 0.7, 0.6, 0.7)
    assert story.allows()


def test_a_part_that_was_not_to_blame_comes_back_and_is_excused():
    """Plans made again and again promise too much, with the part or without it."""
    story = Story()
    while story.allows():
        story.live(1, 0.8, 0.8, 0.5)
    story.live(t.WINDOW, 0.8, 0.8, 0.5)
    story.now_s += t.LEAST_AWAY_S
    assert story.allows()
    assert story.live(4 * t.WINDOW, 0.8, 0.8, 0.5).allows()
    assert not story.live(2 * t.WINDOW, 0.8, 0.8, 0.15).allows()


def test_a_part_stays_away_while_the_plans_without_it_break_theirs():
    story = withdrawn().live(t.WINDOW, 0.9, 0.9, 0.3)
    story.now_s += 2 * t.LEAST_AWAY_S
    assert not story.allows()
    story.live(t.WINDOW, 0.7, 0.7, 0.7)
    assert story.allows()


def test_promises_that_never_hold_keep_a_part_away_for_so_long_and_no_longer():
    story = withdrawn().live(t.WINDOW, 0.9, 0.9, 0.2)
    left_s = story.trust.status(story.now_s)["slots"]["withdrawn_s"]
    assert 0 < left_s < t.PATIENCE * t.LEAST_AWAY_S
    story.now_s += left_s
    assert story.allows()
    assert story.trust.status(story.now_s)["slots"]["withdrawn_s"] == 0.0


@pytest.mark.parametrize("rows", [0, t.WINDOW])
def test_where_nothing_can_be_judged_the_least_time_decides(rows):
    """Nobody comes, or nobody is given a chance and nobody has one."""
    story = withdrawn().live(rows, 0.01, 0.01, 0.0)
    story.now_s = t.LEAST_AWAY_S - 1e-9
    assert not story.allows()
    story.now_s += t.LEAST_AWAY_S
    assert story.allows()


def test_the_least_time_doubles_with_each_relapse_and_ends_with_a_window_of_kept_promises():
    story, least_s = withdrawn(), []

    def relapse() -> None:
        story.now_s += t.PATIENCE * t.LONGEST_LEAST_S
        story.live(t.WINDOW, 0.9, 0.9, 0.0)
        assert not story.allows()
        left_s = story.trust.status(story.now_s)["slots"]["withdrawn_s"]
        least_s.append(round(left_s / t.PATIENCE))

    for _ in range(6):
        relapse()
    assert least_s == [60, 120, 240, 480, 480, 480]
    story.now_s += t.PATIENCE * t.LONGEST_LEAST_S
    story.live(t.WINDOW, 0.8, 0.6, 0.8)
    relapse()
    assert least_s[-1] == t.LEAST_AWAY_S


def test_what_was_promised_before_a_withdrawal_says_nothing_after_it():
    story, early = withdrawn(), np.arange(1e6, 1e6 + t.WINDOW)
    story.trust = Trust()
    story.trust.promise(0.0, early, np.full(t.WINDOW, 0.9), {"slots": np.full(t.WINDOW, 0.9)})
    while story.allows():
        story.live(1, 0.9, 0.9, 0.0)
    for name in early:
        story.trust.finished(float(name), False)
    assert story.trust.status(story.now_s)["slots"]["rows"] == 0.0


def test_more_than_was_promised_breaks_no_promise():
    """Lengths ten times too long promise little, and the plan may be the best there is."""
    assert Story().live(400, 0.1, 0.1, 1.0, "order").allows("order")
    story = withdrawn("order").live(t.WINDOW, 0.4, 0.4, 1.0, "order")
    story.now_s += 2 * t.LEAST_AWAY_S
    assert story.allows("order")


def test_a_row_is_judged_by_its_first_promise_and_once():
    trust, name = Trust(), 7.0
    for chance in (0.9, 0.1):
        trust.promise(0.0, np.array([name]), np.array([chance]), {"order": np.array([0.5])})
    trust.finished(name, True)
    trust.finished(name, False)
    trust.finished(8.0, False)  # nobody promised it anything
    assert trust.status(0.0)["order"] == {
        "rows": 1.0, "promised": 0.9, "without": 0.5, "met": 1.0, "withdrawn_s": 0.0,
    }  # fmt: skip


def test_a_row_that_is_lost_is_judged_before_its_end():
    trust, rows = Trust(), np.arange(40.0)
    trust.promise(0.0, rows, np.full(40, 0.75), {"order": np.full(40, 0.75)})
    trust.lose(rows)
    trust.lose(rows)
    for name in rows:
        trust.finished(float(name), True)  # it cannot be
    status = trust.status(0.0)["order"]
    assert (status["rows"], status["met"]) == (40.0, 0.0)
    trust.promise(1.0, rows, np.full(40, 0.75), {"order": np.full(40, 0.75)})
    for name in rows:
        trust.finished(float(name), True)
    assert trust.status(0.0)["order"]["rows"] == 80.0  # names may come again


@pytest.mark.parametrize(
    ("promised", "met", "short"),
    [(0.8, 0.8, 0.0), (0.8, 0.4, 0.5), (0.5, 1.0, 0.0), (0.8, 0.0, 1.0)],
)
def test_the_shortfall_is_the_share_that_did_not_come(promised, met, short):
    story = Story().live(t.RECENT, promised, promised, met, "order")
    assert story.trust.shortfall() == pytest.approx(short, abs=0.12)


def test_no_shortfall_of_a_few():
    assert Story().live(8, 1.0, 1.0, 0.0, "order").trust.shortfall() == 0.0
    assert Trust().shortfall() == 0.0


@given(
    rows=st.lists(
        st.tuples(st.sampled_from(PARTS), st.floats(0, 1), st.floats(0, 1), st.booleans()),
        max_size=60,
    )
)
def test_the_status_says_what_came(rows):
    trust = Trust()
    for name, (part, promised, without, met) in enumerate(rows):
        arrival_s = float(name)
        trust.promise(1.0, np.array([arrival_s]), np.array([promised]), {part: np.array([without])})
        trust.finished(arrival_s, met)
    for part, status in trust.status(1.0).items():
        own = [row[1:] for row in rows if row[0] == part]
        assert status["rows"] == len(own)
        if not own:
            assert status["promised"] is status["met"] is None
        else:
            means = np.mean(np.array(own, dtype=float), axis=0)
            found = [status[key] for key in ("promised", "without", "met")]
            assert found == pytest.approx(means.tolist())
