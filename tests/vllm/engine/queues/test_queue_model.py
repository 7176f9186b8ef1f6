"""The waiting queue under any sequence of steps: nothing lost or doubled, in plain lists' order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from queued import drained, fresh, preempted

from lengthwise.scheduler.vllm_adapter.engine.scheduler import VllmQueue

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
            st.sampled_from(("add", "remove", "promote", "defer", "preempt", "demote", "skip")),
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
        elif action == "defer":
            queue.defer(value)
            if value in model.planned + model.unplanned:
                model.remove(value)
                model.unplanned.append(value)
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
