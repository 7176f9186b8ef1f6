"""One run of the soak: the load, the samples, the reloads and the troubles as tasks."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from benchmarks.common import note
from benchmarks.engine.accounts import Asked, Faults, leave, metric_in
from benchmarks.engine.soak.soak_routes import ROUTES
from benchmarks.engine.soak.soak_samples import Sample, processes_of
from benchmarks.engine.soak.soak_traffic import Traffic, arrivals
from lengthwise.scheduler.serving.live import LivePredictor, LiveState, write_live
from lengthwise.scheduler.serving.server.server_handle import ServerHandle
from lengthwise.training.bench.engines.client import collected, complete, new_session

OTHER_EVERY = 5
SAMPLE_S, RELOAD_S = 10.0, 60.0
TROUBLE_EVERY_S = 300.0  # half of it before the first
SLOW_S, SLOW_CALL_S, PAUSED_S = 20.0, 2.0, 1.0
HELD_S = 40.0  # so much work in flight at most: a machine that slows down is not a fault of ours
POLICIES = ("sa", "feasible-edf", "sa", "fcfs")


@dataclass
class Tally:
    """What the clients saw."""

    sent: int = 0
    answered: set[int] = field(default_factory=set)
    others: int = 0
    left: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    wrong_lengths: int = 0
    tokens: int = 0
    held_s: float = 0.0
    reloads: int = 0
    pauses: int = 0
    slow_spells: int = 0
    by_tenant: Counter[str] = field(default_factory=Counter)  # rows that other routes must leave
    control_errors: list[str] = field(default_factory=list)

    @property
    def done(self) -> int:
        return (
            len(self.answered) + self.others + self.left + self.errors.total() + self.wrong_lengths
        )


class Soak:
    """One run against a server, and what it tallied and sampled."""

    def __init__(
        self,
        server: ServerHandle,
        traffic: Traffic,
        predictors: list[Path],
        live_file: Path,
        capacity_rps: float,
        faults: Faults,
    ) -> None:
        self.server = server
        self.faults = faults
        self.url = server.url
        self.traffic = traffic
        self.predictors = predictors
        self.live_file = live_file
        self.capacity_rps = capacity_rps
        self.tally = Tally()
        self.samples: list[Sample] = []
        self.began_s = 0.0
        self._flying: set[asyncio.Task[None]] = set()
        self._processes = processes_of(server)

    async def run(self, minutes: float, requests: int, seed: int) -> None:
        """Until the time is up or the requests are sent; then until all have ended."""
        async with new_session() as session, collected():
            self.began_s = time.perf_counter()
            watchers = [
                asyncio.create_task(self._sample(session)),
                asyncio.create_task(self._reload(session)),
                asyncio.create_task(self._trouble(session)),
            ]
            try:
                await self._load(session, minutes * 60.0, requests, seed)
                await asyncio.gather(*self._flying)
                self.samples.append(await self._look(session))
            finally:
                for watcher in watchers:
                    watcher.cancel()

    async def _load(
        self, session: aiohttp.ClientSession, seconds: float, requests: int, seed: int
    ) -> None:
        most = int(HELD_S * self.capacity_rps)
        for at_s in arrivals(self.capacity_rps, seed):
            due_s = self.began_s + at_s + self.tally.held_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            while len(self._flying) >= most:
                self.tally.held_s += 0.05
                await asyncio.sleep(0.05)
            if self.tally.sent >= requests or time.perf_counter() - self.began_s >= seconds:
                return
            task = asyncio.create_task(self._one(session, self.tally.sent))
            self.tally.sent += 1
            self._flying.add(task)
            task.add_done_callback(self._flying.discard)

    async def _one(self, session: aiohttp.ClientSession, i: int) -> None:
        asked, tally = self.traffic.asked(i), self.tally
        if asked.leaves_after is not None:
            await leave(session, self.url, asked, 120.0)
            tally.left += 1
            return
        if i % OTHER_EVERY == OTHER_EVERY - 2:
            await self._other(session, i, asked)
            return
        reply = await complete(session, self.url, asked.body, start=self.began_s, timeout_s=180.0)
        if reply.error is not None:
            tally.errors[reply.error[:120]] += 1
        elif reply.output_tokens != asked.output_tokens:
            tally.wrong_lengths += 1
        else:
            tally.answered.add(i)
            tally.tokens += reply.output_tokens

    async def _other(self, session: aiohttp.ClientSession, i: int, asked: Asked) -> None:
        """The same request by another route, its answer in one piece."""
        route, tally = ROUTES[i // OTHER_EVERY % len(ROUTES)], self.tally
        given = json.loads(asked.body)
        body = {"model": given["model"], "temperature": 0.0}
        body |= route.body(given["prompt"], given["vllm_xargs"])
        if "sampling_params" in body:
            body["sampling_params"] |= {"temperature": 0.0}
        try:
            async with session.post(
                self.url + route.path, json=body, headers={"x-tenant": route.tenant},
                timeout=aiohttp.ClientTimeout(180.0),
            ) as answer:  # fmt: skip
                if answer.status != 200:
                    raise ValueError(f"{answer.status}: {(await answer.text())[:80]}")
                tokens = route.tokens(await answer.json())
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            tally.errors[f"{route.path}: {error!r}"[:120]] += 1
            return
        tally.by_tenant[route.tenant] += route.parts
        if tokens != route.parts * asked.output_tokens:
            tally.wrong_lengths += 1
            return
        tally.others += 1
        tally.tokens += tokens

    async def _trouble(self, session: aiohttp.ClientSession) -> None:
        """A predictor that is slow for a while, then an engine that is paused."""
        for turn in itertools.count():
            due_s = self.began_s + (turn + 0.5) * TROUBLE_EVERY_S
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            with self.faults.during(predictor="slow", predictor_s=SLOW_CALL_S):
                await asyncio.sleep(SLOW_S)
            self.tally.slow_spells += 1
            try:
                for path in ("/pause?mode=wait", "/resume"):
                    async with session.post(self.url + path) as answer:
                        if answer.status != 200:
                            self.tally.control_errors.append(f"{path}: {answer.status}")
                    await asyncio.sleep(PAUSED_S)
            except aiohttp.ClientError as error:
                self.tally.control_errors.append(repr(error))
            self.tally.pauses += 1

    async def _sample(self, session: aiohttp.ClientSession) -> None:
        for turn in itertools.count(1):
            try:
                self.samples.append(await self._look(session))
            except (aiohttp.ClientError, KeyError) as error:  # the status said no
                self.tally.control_errors.append(f"status: {error!r}")
            last = self.samples[-1] if self.samples else None
            if last is not None and turn % 6 == 0:
                note(
                    f"{last.at_s:6.0f} s  {last.done:6d} done, {last.waiting} waiting, "
                    f"API {last.api_mb:.0f} MB, engine {last.engine_mb:.0f} MB, "
                    f"longest wait {last.longest_wait_s:.1f} s, "
                    f"{self.tally.errors.total()} errors"
                )
            await asyncio.sleep(self.began_s + turn * SAMPLE_S - time.perf_counter())

    async def _look(self, session: aiohttp.ClientSession) -> Sample:
        async with session.get(f"{self.url}/lengthwise/status") as answer:
            status = await answer.json()
        async with session.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        api, engine = self._processes["api"], self._processes["engine"]
        memory = {name: p.memory_info().rss / 2**20 for name, p in self._processes.items()}
        return Sample(
            at_s=time.perf_counter() - self.began_s,
            done=self.tally.done,
            in_flight=len(self._flying),
            api_mb=memory["api"],
            engine_mb=memory["engine"],
            worker_mb=memory.get("worker", 0.0),
            api_fds=api.num_fds(),
            engine_fds=engine.num_fds(),
            waiting=status["queue"]["waiting"],
            longest_wait_s=status["queue"]["longest_wait_s"],
            dropped_rows=status["request_log_dropped"],
            fallbacks=metric_in(text, "lengthwise_fallbacks_total"),
        )

    async def _reload(self, session: aiohttp.ClientSession) -> None:
        """Another predictor and another policy by turns, under load."""
        for turn in itertools.count(1):
            await asyncio.sleep(self.began_s + turn * RELOAD_S - time.perf_counter())
            chosen = self.predictors[turn % len(self.predictors)]
            policy = POLICIES[turn % len(POLICIES)]
            write_live(self.live_file, live_state(chosen, policy))
            try:
                async with session.post(f"{self.url}/lengthwise/reload") as answer:
                    if answer.status != 200:
                        self.tally.control_errors.append((await answer.text())[:200])
            except aiohttp.ClientError as error:
                self.tally.control_errors.append(repr(error))
            self.tally.reloads += 1


def live_state(predictor: Path, policy: str) -> LiveState:
    """Predictor and policy, as the live file says them."""
    return LiveState(
        predictor=LivePredictor(directory=str(predictor), version=predictor.name), policy=policy
    )
