"""A policy whose plans are set from outside, and toy engines that plan in a thread."""

from __future__ import annotations

import threading
import time

import numpy as np
from toy_engine import QUANTILES, ToyEngine, make_request

from lengthwise.scheduler.problem import Plan

LIMIT_S = 20.0


def until(condition):
    deadline_s = time.monotonic() + LIMIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.001)
    return found


class Scripted:
    """Serves the last arrival first; what else it does is set from outside."""

    name = "scripted"
    nominal_s = 0.001

    def __init__(self, **parts):
        self.parts = parts
        self.raises = None
        self.gate = None
        self.calls = 0
        self.told = []
        self.seen = []

    def __call__(self, problem):
        self.calls += 1
        self.seen.append(problem)
        if self.gate is not None:
            self.gate.wait(LIMIT_S)
        if self.raises is not None:
            raise self.raises
        return Plan(np.arange(len(problem.waiting))[::-1], **self.parts)

    def finished(self, arrival_s, met):
        self.told.append((arrival_s, met))

    def status(self):
        return {}


def threaded(policy, slots=1, **settings):
    engine = ToyEngine(
        {"policy": "fcfs", "plan_share": 1.0, "refit_steps": 0, "plan_in_thread": True} | settings,
        slots=slots,
    )
    engine.core.planner.policy = policy
    return engine


def fill(engine, names, output_tokens=50, **extra):
    for name in names:
        engine.add(make_request(name, pred_quantiles=QUANTILES, **extra), output_tokens)


def begin_plan(engine, policy, names, output_tokens=100_000, **extra):
    """A plan for these is under way, and stays so until the policy's gate is set."""
    policy.gate = threading.Event()
    fill(engine, names, output_tokens, **extra)
    engine.step()
    until(lambda: policy.calls)


def step_until(engine, condition):
    def stepped():
        engine.step()
        return condition()

    return until(stepped)


def waiting(engine):
    return [request.request_id for request in engine.queue]


def adopted(engine):
    return engine.status()["plan"]["adopted"]
