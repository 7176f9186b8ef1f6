"""The fault table: each fault on the real engine, stock vLLM beside ours, the same requests.

Both servers are up and loaded in turn, closed loop with twice as many clients as slots, so that
the engine never idles for want of requests; each row is loaded so several times, and its ratio of
answer tokens a second stands with the 95 % interval of these pairs. Faults inside our processes
are injected by ``tests/vllm/faults``, the rest is done to them from outside. Exit status 1 if ours
lost a request that stock answered, or has one twice in its log.

Each row is written to ``--out`` as it is done; rows that stand there are not made again.

    python -m benchmarks.engine.faults --out faults.jsonl        # 45 minutes on 2 quiet cores
    python -m benchmarks.engine.faults --seconds 3 --pairs 1     # does it work?
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import finish, interval, note, print_table
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.scheduler.vllm_adapter.server.launch import ServerHandle, launch_server
from lengthwise.scheduler.vllm_adapter.settings import (
    SCHEDULER_CLASS,
    SETTINGS_VARIABLE,
    ServerSettings,
)
from lengthwise.training.bench.engines.client import wait_idle
from lengthwise.training.bench.engines.cores import bound_cores, off_cores
from lengthwise.training.bench.engines.servers import free_port, leaving_on_sigterm

FAULTS_DIR = Path(__file__).resolve().parents[2] / "tests" / "vllm" / "faults"
sys.path.insert(0, str(FAULTS_DIR))
from injected_faults import Faults  # noqa: E402
from request_accounts import (  # noqa: E402
    Account,
    Asked,
    ask,
    drive,
    metric,
    wait_for,
    wait_for_rows,
)
from small_disk import full, small_disk  # noqa: E402

START_TIMEOUT_S = 600.0
SLOTS = 32
LONGEST_TOKENS = 300
QUEUED_POSTS, PROMPTS_A_POST = 1000, 20
QUEUED = f"{QUEUED_POSTS * PROMPTS_A_POST:,} queued"
PREDICTOR_KINDS = {
    "predictor raises": "raise",
    "predictor gives NaN": "nan",
    "predictor gives a level too few": "shape",
    "predictor gives a row too few": "rows",
}
LEAVE_EVERY = 10
CLASSES: dict[str, dict[str, float]] = {
    "chat": {"ttft_ms": 3000.0}, "code": {"e2e_ms": 20000.0},
}  # fmt: skip
SERVER_ARGS = ("--max-num-seqs", str(SLOTS), "--stream-interval", "16")
SMALL_CACHE = ("--block-size", "32", "--num-gpu-blocks-override", "96", "--max-model-len", "2048")


@dataclass(frozen=True)
class Metric:
    """What tells of a fault: a counter, and its labels."""

    name: str
    labels: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        # a bare | would end the table's cell
        inside = ",".join(f'{k}="{v.replace("|", " or ")}"' for k, v in self.labels.items())
        return f"`{self.name}{{{inside}}}`" if inside else f"`{self.name}`"


@dataclass(frozen=True)
class Row:
    """A line of the table; ``ratios`` are our answer tokens a second over stock's, of each pair."""

    fault: str
    injected: str
    sent: int
    lost: int
    lost_stock: int
    twice: int | None
    tells: str
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """The mean of the pairs."""
        return interval(self.ratios)[0] if self.ratios else None

    @property
    def shown_ratio(self) -> str:
        """With its 95 % interval."""
        if not self.ratios:
            return "-"
        mean, half = interval(self.ratios)
        return f"{mean:.2f}" if len(self.ratios) < 2 else f"{mean:.2f} ± {half:.2f}"


class Book:
    """The rows that are done, in a file where one is named."""

    def __init__(self, path: Path | None) -> None:
        self.rows: list[Row] = []
        self._path = path
        if path is not None and path.is_file():
            lines = path.read_text(encoding="utf-8").splitlines()
            self.rows = [Row(**json.loads(line)) for line in lines]

    def lacks(self, *faults: str) -> list[str]:
        """Those of these rows that are still to be made."""
        done = {row.fault for row in self.rows}
        return [fault for fault in faults if fault not in done]

    def add(self, row: Row) -> None:
        """Note a row."""
        self.rows.append(row)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                print(json.dumps(asdict(row)), file=file, flush=True)


@dataclass
class Pair:
    """Stock and ours, up together."""

    stock: ServerHandle
    ours: ServerHandle
    requests: Callable[[str], list[Asked]]
    log_dir: Path | None
    book: Book
    pairs: int

    def run(
        self,
        fault: str,
        injected: str,
        tells: Metric | str,
        *,
        around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
        change: Callable[[list[Asked]], list[Asked]] = lambda asked: asked,
        rows_each: int | None = 1,
        concurrency: int | None = 2 * SLOTS,
        calm_first: bool = False,
    ) -> None:
        """Load both, several times; ``around`` is entered for ours only. ``rows_each`` None: the
        log is hurt. ``calm_first``: before each, ours serves some requests without the fault."""
        if not self.book.lacks(fault):
            return
        rows = []
        for turn in range(self.pairs):
            if calm_first:
                calm = self.requests(f"calm-{fault.replace(' ', '-')}-{turn}")[: 2 * SLOTS]
                self._load(self.ours, calm, 2 * SLOTS)
            rows.append(
                self._once(fault, injected, tells, turn, around, change, rows_each, concurrency)
            )
        last = rows[-1]
        counts = [row.twice for row in rows if row.twice is not None]
        self.book.add(
            Row(
                fault,
                injected,
                sum(row.sent for row in rows),
                sum(row.lost for row in rows),
                sum(row.lost_stock for row in rows),
                sum(counts) if counts else None,
                last.tells,
                [ratio for row in rows for ratio in row.ratios],
            )
        )

    def _once(
        self,
        fault: str,
        injected: str,
        tells: Metric | str,
        turn: int,
        around: Callable[[], contextlib.AbstractContextManager[Any]],
        change: Callable[[list[Asked]], list[Asked]],
        rows_each: int | None,
        concurrency: int | None,
    ) -> Row:
        name = f"{fault.replace(' ', '-').replace(',', '')}-{turn}"
        accounts: dict[str, Account] = {}
        asked = change(self.requests(f"{name}-ours"))
        ids: list[str] = []
        counted = rows = None
        for arm in ("stock", "ours") if turn % 2 else ("ours", "stock"):
            if arm == "stock":
                accounts[arm] = self._load(self.stock, change(self.requests(name)), concurrency)
                continue
            before = self._count(tells)
            with around():
                accounts[arm] = self._load(self.ours, asked, concurrency)
                counted = self._count(tells) - before
            if self.log_dir is not None:
                patience_s = 15.0 if rows_each else 1.5
                # who hangs up at once may never have reached the engine
                ids = [one.own_id for one in asked if one.leaves_after != 0]
                rows = wait_for_rows(self.log_dir, ids, patience_s, rows_each or 1)
        ours, stock = accounts["ours"], accounts["stock"]
        ratios = [ours.tokens_per_s / stock.tokens_per_s] if stock.output_tokens else []
        twice = None
        if rows is not None:
            most = rows_each or 1
            twice = sum(count > most for count in rows.values())
            if rows_each is not None:
                missing = [name for name in ids if rows[name] < most]
                if missing:
                    note(f"{fault}: {len(missing)} without a row, first {missing[0]}")
        for who, account in accounts.items():
            if account.lost:
                first = next(iter((account.errors or account.wrong_lengths).items()))
                note(f"{fault}: {who} lost {account.lost}, first {first}")
        said = tells if isinstance(tells, str) else f"{tells} +{counted:.0f}"
        note(
            f"{fault}, {turn + 1} of {self.pairs}: {ours.elapsed_s:.1f} s against "
            f"{stock.elapsed_s:.1f} s, {said}"
        )
        return Row(fault, injected, len(asked), ours.lost, stock.lost, twice, said, ratios)

    def _load(self, server: ServerHandle, asked: list[Asked], concurrency: int | None) -> Account:
        async def scenario() -> Account:
            account = await drive(server.url, asked, concurrency=concurrency, timeout_s=240)
            await wait_idle(server.url)
            return account

        return asyncio.run(scenario())

    def _count(self, tells: Metric | str) -> float:
        return 0.0 if isinstance(tells, str) else metric(self.ours.url, tells.name, **tells.labels)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of load, a pair and server")
    parser.add_argument("--pairs", type=int, default=5, help="of loads, a row")
    parser.add_argument("--out", type=Path, default=None, help="rows that are done, JSON lines")
    parser.add_argument("--only", nargs="*", choices=list(PARTS), default=None)
    parser.add_argument("--eager", action="store_true", help="compile nothing: a quick try")
    options = parser.parse_args()
    began_s = time.monotonic()
    book = Book(options.out)
    with leaving_on_sigterm(), tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        eager = ("--enforce-eager",) if options.eager else ()
        bench: Bench | None = None
        for name, (part, faults) in PARTS.items():
            if (options.only is None or name in options.only) and book.lacks(*faults):
                bench = bench or Bench(Path(scratch), options.seconds, eager, book, options.pairs)
                note(f"-- {name} ({time.monotonic() - began_s:.0f} s)")
                part(bench)
    rows = book.rows
    print_table(
        ["fault", "injected how", "sent", "lost (stock)", "twice", "what tells", "ours/stock"],
        [
            [
                row.fault, row.injected, row.sent, f"{row.lost} ({row.lost_stock})",
                "-" if row.twice is None else row.twice, row.tells, row.shown_ratio,
            ]
            for row in rows
        ],
    )  # fmt: skip
    bad = [row.fault for row in rows if row.lost > row.lost_stock or row.twice]
    slow = [row.fault for row in rows if row.ratio is not None and row.ratio < 0.9]
    print(f"Lost more than stock, or twice: {', '.join(bad) or 'none'}. "
          f"More than 10 % below stock: {', '.join(slow) or 'none'}. "
          f"{time.monotonic() - began_s:.0f} s in all.")  # fmt: skip
    finish("faults", {"rows": [asdict(row) for row in rows], "bad": bad, "slow": slow})
    return 1 if bad else 0


class Bench:
    """Files, the predictor and the requests that all parts share."""

    def __init__(
        self, scratch: Path, seconds: float, eager: Sequence[str], book: Book, pairs: int
    ) -> None:
        from lengthwise.predictor.fitting.fit import fit_predictor

        self.scratch = scratch
        self.seconds = seconds
        self.eager = eager
        self.book = book
        self.pairs = pairs
        self.cache = Path.cwd() / ".lengthwise"
        table = synthetic_table(2000, seed=11)
        parts = split_table(table)
        predictor = fit_predictor(parts["train"], parts["calibration"], n_estimators=40)
        self.predictor_dir = scratch / "predictor"
        predictor.save(self.predictor_dir)
        frame = parts["test"].head(400).reset_index(drop=True)
        self.prompts = frame["prompt"].tolist()
        self.lengths = frame["output_tokens"].clip(8, LONGEST_TOKENS).astype(int).tolist()
        self.replay = scratch / "replay.json"
        self.replay.write_text(json.dumps({str(i): n for i, n in enumerate(self.lengths)}))
        self.count = 4 * SLOTS

    def requests(self, prefix: str) -> list[Asked]:
        """The same prompts, lengths and classes for every prefix."""
        names = list(CLASSES)
        return [
            ask(
                f"{prefix}-{i}",
                str(k := i % len(self.lengths)),
                self.lengths[k],
                prompt=self.prompts[k],
                slo_class=names[i % len(names)],
            )
            for i in range(self.count)
        ]

    def pair(self, stock: ServerHandle, ours: ServerHandle, log_dir: Path) -> Pair:
        """Both warm, and the number of requests fitted to stock's pace."""
        self.fit_to(stock)
        pair = Pair(stock, ours, self.requests, log_dir, self.book, self.pairs)
        pair._load(ours, self.requests(f"warm-{log_dir.name}"), 2 * SLOTS)
        return pair

    def fit_to(self, server: ServerHandle) -> None:
        """As many requests as stock serves in the wanted seconds."""
        asyncio.run(drive(server.url, self.requests("warm"), concurrency=2 * SLOTS))
        account = asyncio.run(drive(server.url, self.requests("pace"), concurrency=2 * SLOTS))
        pace = account.answered / account.elapsed_s
        self.count = max(2 * SLOTS, int(pace * self.seconds))
        note(f"stock serves {pace:.1f} requests/s, {account.tokens_per_s:.0f} tokens/s")

    def settings(self, log_dir: Path, **more: Any) -> ServerSettings:
        return ServerSettings(
            predictor_dir=str(self.predictor_dir),
            predictor_version="faults/1",
            slo_table=CLASSES,
            request_log=str(log_dir),
            **more,
        )

    def server(
        self,
        name: str,
        settings: ServerSettings | None,
        args: Sequence[str],
        env: dict[str, str] | None = None,
    ) -> ServerHandle:
        return launch_server(
            "tiny",
            settings,
            free_port(),
            [*SERVER_ARGS, *self.eager, *args],
            log_path=self.scratch / f"{name}.log",
            replay_table=self.replay,
            cache_dir=self.cache,
            env=env,
        )


@contextlib.contextmanager
def running(*servers: ServerHandle) -> Iterator[None]:
    """Servers until they are ready, and to their end; the client keeps off their engines' cores."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
        for server in servers:
            server.wait_ready(START_TIMEOUT_S)
        stack.enter_context(off_cores(bound_cores(server.process.pid for server in servers)))
        yield


# -- inside our processes ----------------------------------------------------------------------


def injected_faults(bench: Bench) -> None:
    """Everything that one pair of servers can bear."""
    with small_disk(bench.scratch / "disk", "64m") as limited:
        log_dir = bench.scratch / "disk" / "log"
        faults = Faults(bench.scratch / "faults.json")
        stock = bench.server("stock", None, [])
        ours = bench.server("ours", bench.settings(log_dir), [], faults.environment())
        with running(stock, ours):
            _on_one_pair(bench.pair(stock, ours, log_dir), faults, limited)


def _on_one_pair(pair: Pair, faults: Faults, limited: bool) -> None:
    failed = Metric("lengthwise_predictions_total", {"outcome": "failed"})
    late = Metric("lengthwise_predictions_total", {"outcome": "timeout|skipped"})
    planner = Metric("lengthwise_fallbacks_total", {"cause": "planner"})
    planned = Metric("lengthwise_plan_seconds_count")
    aborted = Metric("lengthwise_requests_total", {"status": "aborted"})
    ended = Metric("lengthwise_requests_total", {"status": "length"})

    def during(**said: Any) -> Callable[[], contextlib.AbstractContextManager[None]]:
        return lambda: faults.during(**said)

    pair.run("none", "-", planned)
    for fault, kind in PREDICTOR_KINDS.items():
        pair.run(fault, "wrapped `predict`", failed, around=during(predictor=kind))
    stuck = during(predictor="slow", predictor_s=5.0)
    how = "wrapped `predict`: 5 s a call"
    pair.run("predictor turns slow", f"{how}, from one to the next", late, around=stuck,
             calm_first=True)  # fmt: skip
    pair.run("predictor slow", f"{how}, not waited for any more", late, around=stuck)
    pair.run("planner raises", "wrapped policy", planner, around=during(planner="raise"))
    pair.run("planner over budget", "wrapped policy: 100 ms a plan, 20 ms allowed", planned,
             around=during(planner="slow", planner_s=0.1))  # fmt: skip
    pair.run("clients leave", "a tenth hangs up, before the first token or midway", aborted,
             change=some_leave)  # fmt: skip
    if limited:
        pair.run(
            "log disk full", "the log's tmpfs filled to its last byte",
            Metric("lengthwise_log_rows_dropped_total"),
            around=lambda: full(pair.log_dir.parent), rows_each=None,
        )  # fmt: skip
    elif pair.book.lacks("log disk full"):
        how = "not run: mounting a tmpfs is not allowed here"
        pair.book.add(Row("log disk full", how, 0, 0, 0, None, "-"))
    replace(pair, requests=short_prompts).run(
        QUEUED, f"{QUEUED_POSTS} posts at once, {PROMPTS_A_POST} prompts each, one token an answer",
        ended, rows_each=PROMPTS_A_POST, concurrency=None,
    )  # fmt: skip


def some_leave(asked: list[Asked]) -> list[Asked]:
    """Every tenth leaves, by turns before the first token and after the second piece."""
    return [
        replace(one, leaves_after=2 * (i // LEAVE_EVERY % 2)) if i % LEAVE_EVERY == 0 else one
        for i, one in enumerate(asked)
    ]


def short_prompts(prefix: str) -> list[Asked]:
    """Each post holds several requests of a few tokens."""
    return [
        ask(
            f"{prefix}-{i}",
            None,
            PROMPTS_A_POST,
            prompt=[f"Say {i} and {k}." for k in range(PROMPTS_A_POST)],
            max_tokens=1,
        )
        for i in range(QUEUED_POSTS)
    ]


# -- without our middleware, and the end of a server -------------------------------------------


def without_middleware(bench: Bench) -> None:
    """Only ``--scheduler-cls``; then SIGTERM under load, to both."""
    log_dir = bench.scratch / "bare-log"
    settings = ServerSettings(request_log=str(log_dir))
    path = settings.write(bench.scratch / "bare.json")
    leaving = ["--shutdown-timeout", "60"]
    stock = bench.server("stock-2", None, leaving)
    only = [*leaving, "--scheduler-cls", SCHEDULER_CLASS]
    ours = bench.server("bare", None, only, {SETTINGS_VARIABLE: str(path)})
    with running(stock, ours):
        pair = bench.pair(stock, ours, log_dir)
        prior = Metric("lengthwise_fallbacks_total", {"cause": "no-prediction"})
        pair.run("middleware absent", "server started without it", prior)
        if bench.book.lacks("SIGTERM under load"):
            bench.book.add(_ended(bench, pair, "SIGTERM under load", terminate))


def terminate(server: ServerHandle) -> None:
    """As an orchestrator does."""
    server.process.send_signal(signal.SIGTERM)


def kill_engine(server: ServerHandle) -> None:
    """The engine process is gone at once, as after an out-of-memory kill."""
    for child in psutil.Process(server.process.pid).children(recursive=True):
        if any("EngineCore" in part for part in child.cmdline()[:1]):
            os.kill(child.pid, signal.SIGKILL)
            return
    raise RuntimeError("no engine process")


def _ended(bench: Bench, pair: Pair, fault: str, end: Callable[[ServerHandle], None]) -> Row:
    """Both servers end under the same load: how many clients were left without an answer."""
    accounts: dict[str, Account] = {}
    name = fault.replace(" ", "-")
    asked = bench.requests(f"{name}-ours")[: 3 * SLOTS]

    async def scenario(server: ServerHandle, load: list[Asked]) -> Account:
        driven = asyncio.create_task(drive(server.url, load, timeout_s=90))
        await asyncio.sleep(1.5)
        end(server)
        return await driven

    for arm, server in (("stock", pair.stock), ("ours", pair.ours)):
        load = asked if arm == "ours" else bench.requests(name)[: 3 * SLOTS]
        accounts[arm] = asyncio.run(scenario(server, load))
        wait_for(server.process.poll, lambda code: code is not None, 60)
    code = pair.ours.process.returncode
    rows = wait_for_rows(pair.log_dir, [one.own_id for one in asked], 2)
    twice = sum(count > 1 for count in rows.values())
    ours, stock = accounts["ours"], accounts["stock"]
    note(f"{fault}: lost {ours.lost}, stock {stock.lost}; {len(rows)} of {len(asked)} logged")
    how = "`--shutdown-timeout 60`" if end is terminate else "`kill -9` on the engine process"
    return Row(fault, how, len(asked), ours.lost, stock.lost, twice, f"exit status {code}")


# -- memory ------------------------------------------------------------------------------------


def small_memory(bench: Bench) -> None:
    """A cache that holds a tenth of what the slots want; then the engine is killed, restarted."""
    log_dir = bench.scratch / "small-log"
    stock = bench.server("stock-3", None, SMALL_CACHE)
    ours = bench.server("small", bench.settings(log_dir), SMALL_CACHE)
    with running(stock, ours):
        pair = bench.pair(stock, ours, log_dir)
        preempted = Metric("vllm:num_preemptions_total")
        how = "`--num-gpu-blocks-override 96`: 3,072 tokens for 32 slots"
        pair.run("constant preemption", how, preempted)
        if not bench.book.lacks("engine killed", "restart after it"):
            return
        killed = _ended(bench, pair, "engine killed", kill_engine)
        if bench.book.lacks("engine killed"):
            bench.book.add(killed)
    again = bench.server("small-again", bench.settings(log_dir), SMALL_CACHE)
    with running(again):
        asked = bench.requests("restarted-ours")[: 2 * SLOTS]
        account = asyncio.run(drive(again.url, asked))
        logged = wait_for_rows(log_dir, [one.own_id for one in asked])
        twice = sum(count > 1 for count in logged.values())
        bench.book.add(
            Row(
                "restart after it", "the same command and log", len(asked), account.lost, 0,
                twice, f"{len(logged)} rows in the log",
            )
        )  # fmt: skip


PARTS: dict[str, tuple[Callable[[Bench], None], tuple[str, ...]]] = {
    "injected": (
        injected_faults,
        (
            "none", *PREDICTOR_KINDS, "predictor turns slow", "predictor slow", "planner raises",
            "planner over budget", "clients leave", "log disk full", QUEUED,
        ),
    ),
    "bare": (without_middleware, ("middleware absent", "SIGTERM under load")),
    "small": (small_memory, ("constant preemption", "engine killed", "restart after it")),
}  # fmt: skip
"""What needs servers of its own, and the rows that it makes."""

if __name__ == "__main__":
    sys.exit(main())
