"""The waiting queue: vLLM's contract, and the plan's order."""

from __future__ import annotations

import time

import pytest
from queued import drained, filled, fresh, preempted
from vllm.v1.core.sched.request_queue import RequestQueue

from lengthwise.scheduler.vllm_adapter.engine.scheduler import VllmQueue


def test_the_queue_fulfils_the_installed_contract():
    assert issubclass(VllmQueue, RequestQueue)
    assert not VllmQueue.__abstractmethods__


def test_without_a_plan_it_is_first_come_first_served():
    assert drained(filled("a", "b", "c")) == ["a", "b", "c"]


def test_a_plan_decides_and_the_unnamed_follow_in_order_of_arrival():
    queue = filled("a", "b", "c", "d")
    queue.set_order(["c", "gone", "a"])
    queue.add_request(fresh("e"))
    assert [r.request_id for r in queue] == ["c", "a", "b", "d", "e"]
    assert drained(queue) == ["c", "a", "b", "d", "e"]


def test_clearing_the_plan_restores_order_of_arrival():
    queue = filled("a", "b", "c")
    queue.set_order(["c", "b", "a"])
    queue.clear_order()
    assert drained(queue) == ["a", "b", "c"]


def test_recovering_requests_come_before_any_plan():
    queue = filled("a", "b")
    queue.set_order(["b", "a"])
    queue.prepend_request(preempted("p"))
    queue.prepend_request(preempted("q"))
    assert queue.recovery_count == 2
    assert drained(queue) == ["q", "p", "b", "a"]


def test_who_gave_up_its_slot_waits_behind_the_plan():
    queue = filled("a", "b")
    queue.prepend_request(preempted("victim"))
    queue.demote("victim")
    assert queue.recovery_count == 0
    assert list(queue.plannable_ids()) == ["victim", "a", "b"]  # until the next plan
    queue.set_order(["b", "a", "victim"])
    skipped = [queue.pop_request() for _ in range(3)]
    queue.prepend_requests(reversed(skipped))  # skipped in a step, it is no more urgent than before
    assert [r.request_id for r in queue] == ["b", "a", "victim"]
    assert drained(queue) == ["b", "a", "victim"]
    queue.settle()  # it runs again; should vLLM itself preempt it now, it recovers like anyone
    queue.add_request(fresh("c"))
    queue.prepend_request(preempted("victim"))
    assert drained(queue) == ["victim", "c"]


def test_a_skipped_request_returns_to_the_front_with_its_arrival_number():
    queue = filled("a", "b", "c")
    queue.set_order(["c", "b", "a"])
    skipped = [queue.pop_request(), queue.pop_request()]
    # vLLM collects skipped requests newest first and prepends them in that order
    queue.prepend_requests(reversed(skipped))
    assert [r.request_id for r in queue] == ["c", "b", "a"]
    queue.clear_order()
    assert drained(queue) == ["a", "b", "c"]


def test_what_peek_showed_is_what_pop_gives_even_after_a_new_plan():
    queue = filled("a", "b")
    shown = queue.peek_request()
    queue.set_order(["b", "a"])
    queue.add_request(fresh("c"))
    assert queue.pop_request() is shown


def test_what_was_shown_and_not_taken_binds_no_later_step():
    queue = filled("a", "b")
    assert queue.peek_request().request_id == "a"  # no memory for it in this step
    queue.set_order(["b", "a"])
    queue.unpin()
    assert queue.peek_request().request_id == "b"


def test_who_is_deferred_goes_to_the_end_until_the_next_order():
    queue = filled("a", "b", "c")
    queue.defer("a")
    queue.defer("absent")
    queue.add_request(fresh("d"))
    assert [r.request_id for r in queue] == ["b", "c", "a", "d"]
    queue.clear_order()
    assert drained(queue) == ["a", "b", "c", "d"]


def test_removing_the_pinned_request_unpins_it():
    queue = filled("a", "b")
    queue.remove_request(queue.peek_request())
    assert queue.pop_request().request_id == "b"


def test_absent_requests_are_ignored_when_removed():
    queue = filled("a")
    queue.remove_request(fresh("x"))
    queue.remove_requests([fresh("y"), fresh("a")])
    assert not queue
    assert len(queue) == 0


def test_an_empty_queue_says_so():
    queue = VllmQueue()
    with pytest.raises(IndexError):
        queue.peek_request()
    with pytest.raises(IndexError):
        queue.pop_request()


def test_promote_puts_a_request_first_but_not_before_recovery():
    queue = filled("a", "b", "c")
    queue.prepend_request(preempted("p"))
    queue.promote("c")
    queue.promote("absent")
    assert drained(queue) == ["p", "c", "a", "b"]


def test_the_same_id_added_twice_is_queued_once():
    queue = filled("a", "a")
    assert len(queue) == 1


def test_a_new_order_costs_what_came_since_the_last():
    """Counted, not timed: ids that a change of order compares are those of newcomers."""

    class Name(str):
        looks = 0
        __slots__ = ()

        def __hash__(self):
            Name.looks += 1
            return super().__hash__()

        __eq__ = str.__eq__

    names = [Name(f"r{i}") for i in range(2_000)]
    queue = filled(*names)
    queue.set_order(names[::-1])
    queue.add_request(fresh(Name("late")))
    Name.looks = 0
    queue.set_order([*names, "late"])
    queue.clear_order()
    assert Name.looks < 50


def test_operations_stay_quick_with_twenty_thousand_queued():
    queue = filled(*(f"r{i}" for i in range(20_000)))
    queue.set_order(f"r{i}" for i in reversed(range(20_000)))
    began = time.perf_counter()
    for i in range(2_000):
        queue.peek_request()
        request = queue.pop_request()
        queue.prepend_request(request)
        queue.remove_request(fresh(f"r{i}"))
        len(queue)
    assert time.perf_counter() - began < 1.0  # a linear scan would take minutes
