"""Run in LMDeploy's environment: a pool of two handles in arrival order, and who leaves it when."""

import asyncio
import json
from contextvars import ContextVar

from lengthwise.scheduler.lmdeploy_adapter.inside.ordered_pool import OrderedPool

WHO = ContextVar("who")


class Engine:
    """Makes handles that can be told apart."""

    def create_instance(self):
        return object()


class FirstCome(OrderedPool):
    """Whoever asked first goes first."""

    def __init__(self, engine, size):
        super().__init__(engine, size)
        self.waiting, self.running = [], []

    def who_asks(self):
        self.waiting.append(WHO.get())
        return WHO.get()

    def admitted(self, free):
        new, self.waiting = self.waiting[:free], self.waiting[free:]
        self.running += new
        return new

    def freed(self, who):
        self.running.remove(who)

    def gave_up(self, who):
        self.waiting.remove(who)


def asking(pool, who, got):
    async def ask():
        WHO.set(who)
        got[who] = await pool.get()

    return asyncio.create_task(ask())


async def turns(count=5):
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled_as_a_handle_comes():
    """Somebody who waits is cancelled in the very turn in which a handle is given back."""
    pool, got = FirstCome(Engine(), 1), {}
    asking(pool, "a", got)
    await turns()
    leaver = asking(pool, "b", got)
    asking(pool, "c", got)
    await turns()
    leaver.cancel()
    pool.put(got["a"])
    await turns()
    served = "c" in got
    pool.put(got.get("c"))
    await turns()
    return {"served": served, "left": leaver.cancelled(), "free": len(pool.free),
            "running": pool.running, "waiting": pool.waiting}  # fmt: skip


async def cancelled_with_a_handle():
    """Somebody is cancelled after a handle was given and before the task has run."""
    pool, got = FirstCome(Engine(), 1), {}
    asking(pool, "a", got)
    await turns()
    leaver = asking(pool, "b", got)
    asking(pool, "c", got)
    await turns()
    pool.put(got["a"])
    leaver.cancel()
    await turns()
    return {"served": "c" in got, "free": len(pool.free), "running": pool.running}


async def woken():
    """The engine sleeps and wakes with new handles, one of the old ones still held."""
    pool, got = FirstCome(Engine(), 1), {}
    asking(pool, "a", got)
    await turns()
    asking(pool, "b", got)
    await turns()
    pool.renew(Engine())
    pool.hand_out()
    asking(pool, "c", got)
    await turns()
    served = sorted(got)
    pool.put(got["a"])
    pool.put(got["b"])
    await turns()
    pool.put(got["c"])
    return {"served": served, "then": sorted(got), "free": len(pool.free),
            "dispatched": pool.num_dispatched}  # fmt: skip


if __name__ == "__main__":
    cases = (cancelled_as_a_handle_comes, cancelled_with_a_handle, woken)
    print(json.dumps({case.__name__: asyncio.run(case()) for case in cases}))
