"""The waiting queue under --scheduling-policy priority."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st
from queued import drained, fresh
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import RequestStatus

from lengthwise.scheduler.vllm_adapter.engine.scheduler import VllmQueue, VllmTieredQueue


def tiered(**priorities):
    queue = VllmTieredQueue()
    for name, priority in priorities.items():
        request = fresh(name)
        request.priority = priority
        queue.add_request(request)
    return queue


def test_tiers_fulfil_the_installed_contract():
    assert issubclass(VllmTieredQueue, RequestQueue)
    assert not VllmTieredQueue.__abstractmethods__


def test_the_smaller_number_goes_first_and_a_plan_orders_within_it():
    queue = tiered(a=5, b=0, c=5, d=-1, e=0)
    assert drained(tiered(a=5, b=0, c=5, d=-1, e=0)) == ["d", "b", "e", "a", "c"]
    queue.set_order(["c", "a", "e", "gone", "b", "d"])
    assert list(queue.plannable_ids()) == ["d", "e", "b", "c", "a"]
    queue.promote("a")
    late = fresh("late")
    late.priority = -1
    queue.add_request(late)
    assert drained(queue) == ["d", "late", "e", "b", "a", "c"]


def test_what_was_shown_is_popped_though_a_sooner_one_comes():
    queue = tiered(a=5)
    assert queue.peek_request().request_id == "a"
    sooner = fresh("b")
    sooner.priority = 0
    queue.add_request(sooner)
    assert [queue.pop_request().request_id, queue.pop_request().request_id] == ["a", "b"]


def test_what_was_shown_and_not_taken_binds_no_later_step():
    queue = tiered(a=5, b=5)
    assert queue.peek_request().request_id == "a"
    queue.set_order(["b", "a"])
    queue.unpin()
    assert queue.peek_request().request_id == "b"
    queue.unpin()
    queue.defer("b")
    assert drained(queue) == ["a", "b"]


def test_who_ran_recovers_within_its_tier_and_keeps_it_until_forgotten():
    queue = tiered(a=5, b=0)
    a = queue._tiers[5].peek_request()
    queue.remove_request(a)
    a.status, a.num_output_tokens = RequestStatus.PREEMPTED, 3
    queue.prepend_request(a)
    assert (queue.recovery_count, queue.recovery_ids()) == (1, ["a"])
    queue.demote("a")
    assert (queue.recovery_count, queue.yielded_ids()) == (0, ["a"])
    queue.reinstate()
    assert queue.recovery_ids() == ["a"]
    assert drained(queue) == ["b", "a"]
    for name in "ab":
        queue.forget(name)
    assert (queue._tiers, queue._levels, queue._level_of) == ({}, [], {})


def test_a_slot_goes_to_nobody_of_a_later_tier():
    queue = tiered(runs=1, waits=1)
    queue.remove_request(queue._tiers[1].peek_request())
    assert queue.may_displace("runs")
    queue.forget("waits")
    later = fresh("later")
    later.priority = 2
    queue.add_request(later)
    assert not queue.may_displace("runs")
    assert queue.may_displace("later")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(-2, 2)), max_size=40),
    st.permutations(range(31)),
    st.sets(st.integers(0, 30)),
)
def test_tiers_are_stable_sorting_by_priority(asked, plan, removed):
    """Whatever is planned and removed: by number, then as one queue would have it."""
    one, many = VllmQueue(), VllmTieredQueue()
    priorities = {}
    for name, priority in asked:
        if str(name) in priorities:
            continue
        priorities[str(name)] = priority
        for queue in (one, many):
            request = fresh(str(name))
            request.priority = priority
            queue.add_request(request)
    for queue in (one, many):
        queue.set_order([str(name) for name in plan])
        queue.remove_requests([fresh(str(name)) for name in removed])
    assert (len(one), bool(one)) == (len(many), bool(many))
    expected = sorted([r.request_id for r in one], key=priorities.__getitem__)
    assert [r.request_id for r in many] == expected
    assert all(name in many for name in expected)
    assert drained(many) == expected


def test_a_plan_is_forgotten_in_every_tier():
    """As when the planner raises: who came first goes first again."""
    queue = tiered(a=5, b=0, c=5, d=0)
    queue.set_order(["c", "a", "d", "b"])
    queue.clear_order()
    assert drained(queue) == ["b", "d", "a", "c"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10), st.integers(0, 9)), max_size=60))
def test_what_is_counted_over_tiers_is_what_is_in_them(steps):
    queue, running = VllmTieredQueue(), {}
    for act, number in steps:
        name = str(number)
        if act <= 1 and name not in queue and name not in running:
            request = fresh(name)
            request.priority = number % 3
            queue.add_request(request)
        elif act == 2 and queue:
            request = queue.pop_request()
            running[request.request_id] = request
        elif act == 3 and name in running:  # preempted by the engine, or by a plan
            request = running.pop(name)
            request.status, request.num_output_tokens = RequestStatus.PREEMPTED, 1
            queue.prepend_request(request)
            if number % 2:
                queue.demote(name)
        elif act == 4:
            queue.reinstate()
        elif act == 5:
            queue.remove_request(running.get(name, fresh(name)))
        elif act == 6:
            running.pop(name, None)
            queue.forget(name)
        elif act == 7:
            queue.promote(name)
        elif act == 8 and name in running:  # vLLM looked at it and put it back
            queue.prepend_request(running.pop(name))
        elif act == 9:
            queue.clear_order()
        else:
            queue.set_order([str(other) for other in range(number)])
            queue.settle()
        tiers = [queue._tiers[level] for level in queue._levels]
        assert len(queue) == sum(map(len, tiers)) == len(list(queue))
        assert queue.recovery_count == sum(tier.recovery_count for tier in tiers)
        assert queue.recovery_ids() == [one for tier in tiers for one in tier.recovery_ids()]
        assert queue.yielded_ids() == [one for tier in tiers for one in tier.yielded_ids()]
        assert bool(queue) == any(tiers)
        plannable = [one for tier in tiers for one in tier.plannable_ids()]
        assert list(queue.plannable_ids()) == plannable
        assert sorted(queue.plannable_members()) == sorted(plannable)


def test_a_priority_of_its_own_for_each_request_slows_no_step():
    queue = VllmTieredQueue()
    for number in range(5_000):
        request = fresh(f"r{number}")
        request.priority = -number
        queue.add_request(request)
    began_s = time.perf_counter()
    for _ in range(2_000):
        assert len(queue) == 5_000
        assert queue.recovery_count == 0
        queue.settle()
        queue.reinstate()
    assert time.perf_counter() - began_s < 1.0  # a look at each tier would take a minute


def test_a_picture_of_twenty_thousand_priorities_costs_what_one_queue_would():
    one, many = VllmQueue(), VllmTieredQueue()
    for number in range(20_000):
        for queue in (one, many):
            request = fresh(f"r{number}")
            request.priority = -number
            queue.add_request(request)
    order = [f"r{number}" for number in range(0, 20_000, 2)]

    def spent_s(queue):
        began_s = time.perf_counter()
        for _ in range(10):
            members = queue.plannable_members()
            queue.set_order(order)
        assert sorted(members) == sorted(f"r{number}" for number in range(20_000))
        return time.perf_counter() - began_s

    spent_s(one)
    assert spent_s(many) < 20 * spent_s(one) + 0.2  # ten looks at each tier took a second
