"""A worker for an event loop: waited for or told of, each once, whatever becomes of the loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import pytest

from lengthwise.scheduler.serving.api.predicting.worker_thread import WorkerThread


def test_a_result_is_waited_for_and_made_elsewhere():
    work = WorkerThread("w").submit(lambda: (threading.current_thread().name, 7))
    assert work.wait(5.0)
    assert (work.result, work.error) == (("w", 7), None)


def test_an_error_is_kept_for_the_asker_and_the_next_call_is_made():
    worker = WorkerThread("w")
    failed, fine = worker.submit(lambda: 1 / 0), worker.submit(lambda: 1)
    assert failed.wait(5.0)
    assert fine.wait(5.0)
    assert isinstance(failed.error, ZeroDivisionError)
    assert (failed.result, fine.result) == (None, 1)


def test_who_waits_too_short_is_told_later():
    release = threading.Event()
    work = WorkerThread("w").submit(release.wait)
    began_s = time.monotonic()
    assert not work.wait(0.02)
    assert time.monotonic() - began_s < 2.0

    async def scenario():
        told = asyncio.Event()
        work.tell(asyncio.get_running_loop(), told.set)
        await asyncio.sleep(0.01)
        assert not told.is_set()
        release.set()
        await asyncio.wait_for(told.wait(), 5.0)

    asyncio.run(scenario())
    assert work.result is True


@pytest.mark.parametrize("delay_s", [0.0, 0.0001, 0.001])
def test_everybody_is_told_once_however_the_end_falls(delay_s):
    worker = WorkerThread("w")

    async def scenario():
        told = []
        for index in range(200):
            work = worker.submit(lambda: time.sleep(delay_s))
            if index % 2:
                work.wait(5.0)
            work.tell(asyncio.get_running_loop(), lambda index=index: told.append(index))
        deadline_s = time.monotonic() + 10.0
        while len(told) < 200 and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        return told

    assert sorted(asyncio.run(scenario())) == list(range(200))


def test_a_loop_that_is_gone_does_not_end_the_worker():
    worker, release = WorkerThread("w"), threading.Event()

    async def leave():
        worker.submit(release.wait).tell(asyncio.get_running_loop(), lambda: None)

    asyncio.run(leave())
    release.set()
    work = worker.submit(lambda: 3)
    assert work.wait(5.0)
    assert work.result == 3


def test_the_thread_ends_with_its_object_and_holds_nothing():
    class Asker:
        def __init__(self):
            self.worker = WorkerThread("ending")

        def ask(self):
            return self.worker.submit(self.answer)

        def answer(self):
            return 5

    asker = Asker()
    assert asker.ask().wait(5.0)
    gone = weakref.ref(asker)
    del asker
    gc.collect()
    assert gone() is None
    deadline_s = time.monotonic() + 5.0
    while any(t.name == "ending" for t in threading.enumerate()) and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert not any(t.name == "ending" for t in threading.enumerate())
