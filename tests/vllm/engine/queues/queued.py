"""Requests as the waiting queue sees them, and queues of them."""

from __future__ import annotations

from types import SimpleNamespace

from vllm.v1.request import RequestStatus

from lengthwise.scheduler.vllm_adapter.engine.scheduler import VllmQueue


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
