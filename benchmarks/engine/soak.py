"""Soak: hours' worth of short requests against the real engine, watched for leaks and losses.

Mixed classes with SLOs on the built-in model, replayed lengths, real prompts where
``LENGTHWISE_DATA`` is set. Arrivals lie below the measured capacity with bursts above it; one
client in twenty hangs up, one in five asks another generating route; every minute the predictor
and the policy are switched, every five the predictor is slow for a while and the engine is paused.
Answers are scaled to be short, so that many requests fit into the time. Exit status 1 if a
criterion fails.

    python -m benchmarks.engine.soak --minutes 30 --requests 50000
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import aiohttp
import numpy as np
import psutil
from scipy.stats import theilslopes

from benchmarks.common import finish, note, print_table
from benchmarks.engine.soak_routes import ROUTES
from lengthwise.data.arena.workloads import ArenaClass, arena_workload, build_workload
from lengthwise.data.request_log import read_request_log
from lengthwise.data.sources.load import load_table
from lengthwise.data.table import PromptTable
from lengthwise.scheduler.vllm_adapter.live import LivePredictor, LiveState, write_live
from lengthwise.scheduler.vllm_adapter.server.launch import ServerHandle, launch_server
from lengthwise.scheduler.vllm_adapter.settings import ServerSettings
from lengthwise.training.bench.engines.client import collected, complete, new_session
from lengthwise.training.bench.engines.cores import bound_cores, off_cores
from lengthwise.training.bench.engines.servers import free_port, leaving_on_sigterm

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "vllm" / "faults"))
from injected_faults import Faults
from request_accounts import Asked, ask, drive, leave, logged, metric_in

START_TIMEOUT_S = 600.0
WORKLOAD = "mixed"
SLOTS = 32
# A cache of 65,536 tokens: one of the usual size would be touched page by page for many minutes,
# which looks like a leak.
SERVER_ARGS = (
    "--max-num-seqs", "32", "--stream-interval", "16", "--max-model-len", "2048",
    "--block-size", "32", "--num-gpu-blocks-override", "2048", "--enable-scale-out",
)  # fmt: skip
MAX_WAIT_S = 60.0
WAIT_SLACK_S = 5.0  # a step and the rest of the running answers stand between due and admitted
CALM, BURST = 0.75, 2.0  # multiples of the capacity
BURST_EVERY_S, BURST_S = 60.0, 8.0
LEAVE_EVERY = 20
OTHER_EVERY = 5
SAMPLE_S, RELOAD_S = 10.0, 60.0
TROUBLE_EVERY_S = 300.0  # half of it before the first
SLOW_S, SLOW_CALL_S, PAUSED_S = 20.0, 2.0, 1.0
WARM_UP_SHARE = 0.2
MOST_MB_PER_10K = 10.0
HELD_S = 40.0  # so much work in flight at most: a machine that slows down is not a fault of ours
POLICIES = ("sa", "feasible-edf", "sa", "fcfs")


@dataclass(frozen=True)
class Sample:
    """The server at a moment of the run; memory in MB."""

    at_s: float
    done: int
    in_flight: int
    api_mb: float
    engine_mb: float
    worker_mb: float
    api_fds: int
    engine_fds: int
    waiting: int
    longest_wait_s: float
    dropped_rows: int
    fallbacks: float


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


@dataclass(frozen=True)
class Growth:
    """MB per 10,000 requests after the warm-up: Theil-Sen slope and its 95 % interval."""

    process: str
    slope: float
    low: float
    high: float
    first_mb: float
    last_mb: float


class Traffic:
    """Endless requests of the arena's mixed workload, answers scaled to a mean length."""

    def __init__(self, mean_tokens: float, seed: int) -> None:
        arena = arena_workload(WORKLOAD)
        table: PromptTable = load_table(arena.default_source)
        self.label = arena.default_source
        drawn = build_workload(WORKLOAD, table, 2000, 1.0, seed)
        scale = mean_tokens / np.mean([one.output_tokens for one in drawn])
        self.requests = [one for one in drawn if one.prompt and one.prompt_tokens < 400]
        self.lengths = [max(1, round(one.output_tokens * scale)) for one in self.requests]
        self.scale = float(scale)
        self.classes: tuple[ArenaClass, ...] = arena.classes

    def asked(self, i: int, prefix: str = "soak") -> Asked:
        """Request ``i``; one in twenty leaves, by turns before the first token and midway."""
        k = i % len(self.requests)
        leaves = 2 * (i // LEAVE_EVERY % 2) if i % LEAVE_EVERY == LEAVE_EVERY - 1 else None
        one = self.requests[k]
        return ask(
            f"{prefix}-{i}",
            str(k),
            self.lengths[k],
            prompt=one.prompt,
            leaves_after=leaves if prefix == "soak" else None,
            **one.slo.to_xargs(),
        )

    def replay_table(self, path: Path) -> Path:
        """The lengths as the replay processor reads them."""
        path.write_text(json.dumps({str(k): n for k, n in enumerate(self.lengths)}))
        return path


def arrivals(rate_rps: float, seed: int) -> Iterator[float]:
    """Poisson arrivals at ``CALM`` times the rate, ``BURST`` times in bursts, by thinning."""
    rng = np.random.default_rng(seed)
    now_s = 0.0
    while True:
        now_s += float(rng.exponential(1.0 / (BURST * rate_rps)))
        bursting = now_s % BURST_EVERY_S > BURST_EVERY_S - BURST_S
        if bursting or rng.random() < CALM / BURST:
            yield now_s


def mean_load() -> float:
    """Offered load over capacity, averaged over calm and burst."""
    return (CALM * (BURST_EVERY_S - BURST_S) + BURST * BURST_S) / BURST_EVERY_S


class Soak:
    """One run: the load, the samples and the reloads as three tasks."""

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


def processes_of(server: ServerHandle) -> dict[str, psutil.Process]:
    """API, engine and worker by their titles."""
    api = psutil.Process(server.process.pid)
    found = {"api": api}
    for child in api.children(recursive=True):
        title = (child.cmdline() or [""])[0]
        for name, part in (("engine", "EngineCore"), ("worker", "Worker")):
            if part in title:
                found[name] = child
    if "engine" not in found:
        raise RuntimeError("the engine runs inside the API process: nothing to tell apart")
    return found


def live_state(predictor: Path, policy: str) -> LiveState:
    """Predictor and policy, as the live file says them."""
    return LiveState(
        predictor=LivePredictor(directory=str(predictor), version=predictor.name), policy=policy
    )


def growth(samples: list[Sample], process: str) -> Growth:
    """Slope of a process's memory over the requests done, after the warm-up."""
    after = [s for s in samples if s.at_s >= WARM_UP_SHARE * samples[-1].at_s]
    memory = np.array([getattr(s, f"{process}_mb") for s in after])
    done = np.array([s.done for s in after]) / 10_000.0
    slope, _, low, high = theilslopes(memory, done, 0.95)
    return Growth(process, *map(float, (slope, low, high, memory[0], memory[-1])))


def plot(samples: list[Sample], path: Path) -> Path:
    """Memory over time, and the queue below it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    minutes = [s.at_s / 60 for s in samples]
    figure, (memory, queue) = plt.subplots(
        2, 1, sharex=True, figsize=(8, 5), height_ratios=(2, 1), layout="constrained"
    )
    for process in ("api", "engine", "worker"):
        memory.plot(minutes, [getattr(s, f"{process}_mb") for s in samples], label=process)
    memory.set_ylim(bottom=0)
    memory.set_ylabel("resident memory, MB")
    memory.legend(loc="lower right", frameon=False)
    queue.plot(minutes, [s.waiting for s in samples], color="tab:gray")
    queue.set_ylabel("waiting")
    queue.set_xlabel("minutes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def predictors(directory: Path) -> list[Path]:
    """Two small predictors of the same levels, to switch between."""
    from lengthwise.data.sources.synthetic.corpus import synthetic_table
    from lengthwise.data.splits import split_table
    from lengthwise.predictor.fitting.fit import fit_predictor

    made = []
    for seed in (1, 2):
        parts = split_table(synthetic_table(1500, seed=seed))
        made.append(directory / f"soak-{seed}")
        fit_predictor(parts["train"], parts["calibration"], n_estimators=30).save(made[-1])
    return made


def capacity(url: str, traffic: Traffic) -> float:
    """Requests a second with the slots full, closed loop; the first round warms up."""
    rate = 0.0
    for turn, count in enumerate((4 * SLOTS, 12 * SLOTS)):
        asked = [traffic.asked(i, f"capacity{turn}") for i in range(count)]
        account = asyncio.run(drive(url, asked, concurrency=2 * SLOTS))
        if account.lost:
            raise SystemExit(f"the server loses requests before the soak: {account.errors}")
        rate = account.answered / account.elapsed_s
    return rate


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--mean-tokens", type=float, default=24.0, help="of the scaled answers")
    parser.add_argument("--eager", action="store_true", help="compile nothing: a quick try")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/soak_memory.png"))
    options = parser.parse_args()
    traffic = Traffic(options.mean_tokens, options.seed)
    with leaving_on_sigterm(), tempfile.TemporaryDirectory(prefix="soak-") as scratch:
        root = Path(scratch)
        known = predictors(root)
        live_file = root / "live.json"
        write_live(live_file, live_state(known[0], POLICIES[0]))
        table = {c.slo.slo_class: {} for c in traffic.classes}
        settings = ServerSettings(
            predictor_dir=str(known[0]),
            predictor_version=known[0].name,
            slo_table=table,
            request_log=str(root / "log"),
            max_wait_s=MAX_WAIT_S,
            allow_configure=True,
            live_file=str(live_file),
        )
        faults = Faults(root / "faults.json")
        with launch_server(
            "tiny",
            settings,
            free_port(),
            [*SERVER_ARGS, *(["--enforce-eager"] if options.eager else [])],
            log_path=root / "server.log",
            replay_table=traffic.replay_table(root / "replay.json"),
            cache_dir=Path.cwd() / ".lengthwise",
            env=faults.environment() | {"VLLM_SERVER_DEV_MODE": "1"},  # which has /pause
        ) as server:
            server.wait_ready(START_TIMEOUT_S)
            rate = capacity(server.url, traffic)
            note(f"capacity {rate:.1f} requests/s")
            run = Soak(server, traffic, known, live_file, rate, faults)
            with off_cores(bound_cores([server.process.pid])):
                asyncio.run(run.run(options.minutes, options.requests, options.seed))
            time.sleep(3.0)  # the log's last batch
            rows = Counter({k: n for k, n in logged(root / "log").items() if k.startswith("soak-")})
            tenants = Counter(read_request_log(root / "log")["tenant"].dropna())
            said = server.log_path.read_text(errors="replace")
    figure = plot(run.samples, options.figure)
    return report(run, rows, tenants, said.count("Traceback"), figure)


def report(
    run: Soak, rows: Counter[str], tenants: Counter[str], tracebacks: int, figure: Path
) -> int:
    """Print the summary; 1 if a criterion does not hold."""
    tally, last = run.tally, run.samples[-1]
    grown = [growth(run.samples, name) for name in ("api", "engine", "worker")]
    twice = sum(count > 1 for count in rows.values())
    unlogged = sum(f"soak-{i}" not in rows for i in tally.answered)
    longest_s = max(s.longest_wait_s for s in run.samples)
    middle = run.samples[int(len(run.samples) * WARM_UP_SHARE)]
    criteria = {
        "no error": not tally.errors and not tally.control_errors,
        "no answer cut or doubled": not tally.wrong_lengths and not twice,
        "every answer has its row": not unlogged and not last.dropped_rows,
        "and on the other routes": tenants == tally.by_tenant,
        "bounded wait held": longest_s <= MAX_WAIT_S + WAIT_SLACK_S,
        "memory flat": all(g.low <= MOST_MB_PER_10K for g in grown),
        "descriptors flat": last.api_fds <= middle.api_fds + 16
        and last.engine_fds <= middle.engine_fds + 4,
        "no traceback in the server's log": not tracebacks,
    }
    print(
        f"Soak of {last.at_s / 60:.1f} minutes: {tally.sent:,} requests "
        f"({tally.sent / last.at_s:.1f}/s; capacity {run.capacity_rps:.1f}/s, offered "
        f"{mean_load():.2f} of it, in bursts {BURST:g}). Prompts: {run.traffic.label}; answers "
        f"scaled by {run.traffic.scale:.3f} to a mean of {np.mean(run.traffic.lengths):.0f} "
        "tokens, so that many pass.\n"
    )
    print_table(
        ["quantity", "value"],
        [
            ["answered whole", f"{len(tally.answered):,}"],
            [f"by {len(ROUTES)} other routes, whole", f"{tally.others:,}"],
            ["their rows in the log", f"{tenants.total():,} of {tally.by_tenant.total():,}"],
            ["clients that hung up", f"{tally.left:,}"],
            ["errors", f"{tally.errors.total()} {dict(tally.errors.most_common(2)) or ''}"],
            ["cut or wrong length", tally.wrong_lengths],
            ["rows in the log, twice, missing", f"{rows.total():,}, {twice}, {unlogged}"],
            [
                "reloads, pauses, spells of a slow predictor",
                f"{tally.reloads}, {tally.pauses}, {tally.slow_spells}",
            ],
            ["of them and of status calls, failed", len(tally.control_errors)],
            ["longest wait (bound)", f"{longest_s:.1f} s ({MAX_WAIT_S:g} s)"],
            ["most waiting", max(s.waiting for s in run.samples)],
            ["arrivals held back by the client", f"{tally.held_s:.1f} s"],
            ["fallbacks", f"{last.fallbacks:.0f}"],
            ["open descriptors, API and engine", f"{last.api_fds}, {last.engine_fds}"],
        ],
    )
    print_table(
        ["process", "after warm-up, MB", "at the end, MB", "MB per 10,000 requests", "95 %"],
        [
            [
                g.process, f"{g.first_mb:.0f}", f"{g.last_mb:.0f}", f"{g.slope:+.1f}",
                f"{g.low:+.1f} to {g.high:+.1f}",
            ]
            for g in grown
        ],
    )  # fmt: skip
    failed = [name for name, held in criteria.items() if not held]
    print(f"Criteria: {', '.join(criteria)}. Failed: {', '.join(failed) or 'none'}. {figure}")
    finish(
        "soak",
        {
            "minutes": last.at_s / 60,
            "sent": tally.sent,
            "answered": len(tally.answered),
            "errors": tally.errors.total(),
            "twice": twice,
            "unlogged": unlogged,
            "longest_wait_s": longest_s,
            "growth": [asdict(g) for g in grown],
            "criteria": criteria,
            "samples": [asdict(s) for s in run.samples],
        },
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
