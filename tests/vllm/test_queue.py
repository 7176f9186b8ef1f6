"""The waiting queue: vLLM's contract, and the plan's order."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import RequestStatus

from lengthwise.scheduler.vllm_adapter.engine.scheduler import VllmQueue, VllmTieredQueue


def fresh(name, status=RequestStatus.WAITING, computed=0, output=0):
    return SimpleNamespace(
        request_id=name, status=status, num_computed_tokens=computed, num_output_tokens=output
    )


def preempted(name):
    return fresh(name, RequestStatus.PREEMPTED, output=3)


def filled(*names):
    queue = VllmQueue()
    for name in names:
        queue.add_request(fresh(name))
    return queue


def drained(queue):
    names = []
    while queue:
        shown = queue.peek_request()
        popped = queue.pop_request()
        assert shown is popped
        names.append(popped.request_id)
    return names


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


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 30)),
        st.tuples(st.just("pop"), st.just(0)),
        st.tuples(st.just("skip"), st.just(0)),
        st.tuples(st.just("preempt"), st.integers(0, 30)),
        st.tuples(st.just("remove"), st.integers(0, 30)),
        st.tuples(st.just("plan"), st.permutations(range(31))),
        st.tuples(st.just("clear"), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ACTIONS)
def test_every_request_pushed_is_popped_exactly_once(actions):
    queue, inside, running = VllmQueue(), set(), {}
    for action, value in actions:
        name = f"r{value}"
        if action == "add" and name not in inside and name not in running:
            queue.add_request(fresh(name))
            inside.add(name)
        elif action == "pop" and inside:
            popped = queue.pop_request()
            inside.remove(popped.request_id)  # KeyError: popped twice, or never pushed
            running[popped.request_id] = popped
        elif action == "skip" and inside:
            queue.prepend_requests([queue.pop_request()])
        elif action == "preempt" and name in running:
            del running[name]
            queue.prepend_request(preempted(name))
            inside.add(name)
        elif action == "remove":
            queue.remove_requests([fresh(name)])
            inside.discard(name)
        elif action == "plan":
            queue.set_order(f"r{i}" for i in value)
        elif action == "clear":
            queue.clear_order()
        assert len(queue) == len(inside) == len(list(queue))
        assert bool(queue) == bool(inside)
    assert set(drained(queue)) == inside


class Model:
    """The queue as lists: recovering, planned, unplanned; arrival numbers."""

    def __init__(self):
        self.recovery, self.planned, self.unplanned, self.numbers = [], [], [], {}
        self.yielded = set()

    def strands(self):
        return self.recovery, self.planned, self.unplanned

    def order(self):
        return [name for strand in self.strands() for name in strand]

    def enter(self, name):
        self.numbers.setdefault(name, len(self.numbers))
        self.remove(name)

    def remove(self, name):
        for strand in self.strands():
            if name in strand:
                strand.remove(name)

    def plan(self, names):
        everyone = sorted(self.planned + self.unplanned, key=self.numbers.__getitem__)
        self.planned = [name for name in dict.fromkeys(names) if name in everyone]
        self.unplanned = [name for name in everyone if name not in self.planned]


NAMES = st.integers(0, 12).map("r{}".format)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.sampled_from(("add", "remove", "promote", "preempt", "demote", "skip")),
            NAMES,
        ),
        st.tuples(st.just("plan"), st.lists(NAMES, max_size=16)),
        st.tuples(st.sampled_from(("clear", "pop", "reinstate", "settle")), st.none()),
    ),
    max_size=60,
)


@settings(max_examples=400, deadline=None)
@given(STEPS)
def test_the_order_is_that_of_plain_lists(steps):
    """Whatever happens between plans, also plans that name a request twice or name strangers."""
    queue, model = VllmQueue(), Model()
    for action, value in steps:
        inside = value in model.order() if isinstance(value, str) else False
        if action == "add":  # perhaps who stands in the queue already, or once did
            queue.add_request(fresh(value))
            model.enter(value)
            model.unplanned.append(value)
        elif action == "remove":
            queue.remove_request(fresh(value))
            model.remove(value)
        elif action == "promote":
            queue.promote(value)
            if value in model.planned + model.unplanned:
                model.remove(value)
                model.planned.insert(0, value)
        elif action == "preempt" and not inside:
            queue.prepend_request(preempted(value))
            model.enter(value)
            (model.planned if value in model.yielded else model.recovery).insert(0, value)
        elif action == "demote":
            queue.demote(value)
            if value in model.recovery:
                model.recovery.remove(value)
                model.planned.append(value)
                model.yielded.add(value)
        elif action == "skip":
            queue.prepend_requests([fresh(value)])
            model.enter(value)
            model.planned.insert(0, value)
        elif action == "plan":
            queue.set_order(iter(value))
            model.plan(value)
        elif action == "clear":
            queue.clear_order()
            model.plan(())
        elif action == "pop" and model.order():
            assert queue.peek_request() is queue.pop_request()
            model.remove(model.order()[0])
        elif action == "reinstate":
            queue.reinstate()
            back = [name for name in model.yielded if name in model.planned + model.unplanned]
            for name in sorted(back, key=model.numbers.__getitem__):
                model.remove(name)
                model.recovery.append(name)
            model.yielded.clear()
        elif action == "settle":
            queue.settle()
            model.yielded &= set(model.order())
        expected = model.order()
        assert [request.request_id for request in queue] == expected
        assert len(queue) == len(expected)
        assert bool(queue) == bool(expected)
        assert list(queue.plannable_ids()) == model.planned + model.unplanned
        assert sorted(queue.plannable_members()) == sorted(model.planned + model.unplanned)
        assert all((name in queue) == (name in expected) for name in map("r{}".format, range(13)))
    assert drained(queue) == model.order()


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


# -- under --scheduling-policy priority -------------------------------------------------------


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
