"""Faults on the real engine: in each, every request is answered once and something tells of it.

The session's server runs with ``faults/`` on its path and obeys its control file. What would end
that server, or needs it started otherwise, has a server of its own. ``make chaos`` runs the long
half too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from replayed_lengths import REPLAYED
from request_accounts import Account, ask, drive, logged, metric, wait_for, wait_for_rows
from small_disk import full, small_disk
from typer.testing import CliRunner

from lengthwise.data.request_log import read_request_log
from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
from lengthwise.scheduler.vllm_adapter.settings import (
    SCHEDULER_CLASS,
    SETTINGS_VARIABLE,
    ServerSettings,
)
from lengthwise.training.bench.engines.servers import free_port

pytestmark = pytest.mark.vllm

SMALL_CACHE = [
    "--enforce-eager", "--max-num-seqs", "8", "--block-size", "32",
    "--num-gpu-blocks-override", "64", "--max-model-len", "1536",
]  # fmt: skip
STUCK_S = 5.0


def some(prefix, n=24, **how):
    """Requests of the session's replay table, 1 to 61 tokens long."""
    return [ask(f"{prefix}-{i}", i, REPLAYED[str(i)], **how) for i in range(n)]


def long_ones(prefix, n, **how):
    """Eight of these at once want twice what the cache holds."""
    return [ask(f"{prefix}-{i}", "long", 500, **how) for i in range(n)]


def serve(server, asked, **how) -> Account:
    return asyncio.run(drive(server.url, asked, **how))


def all_once(server, account, asked):
    """Nobody lost, everybody whole, one row each."""
    assert account.errors == {}
    assert account.wrong_lengths == {}
    assert account.answered + account.left == len(asked)
    # who hangs up at once may never have reached the engine
    reached = {request.own_id for request in asked if request.leaves_after != 0}
    assert wait_for_rows(server.log_dir, reached) == dict.fromkeys(reached, 1)
    rows = logged(server.log_dir)
    assert all(rows[request.own_id] <= 1 for request in asked)


def status(server):
    return httpx.get(f"{server.url}/lengthwise/status", timeout=60).json()


def configure(server, **body):
    answer = httpx.post(f"{server.url}/lengthwise/configure", json=body, timeout=60)
    assert answer.status_code == 200, answer.text


@pytest.fixture
def well(server):
    """The session's server as it was, before and after."""
    configure(server, policy="sa", lengths="learned", reset_stats=True)
    yield server
    server.faults.set()


# -- the planner -------------------------------------------------------------------------------


def test_a_planner_over_its_budget_is_not_waited_for(well):
    """A plan of 300 ms, 15 times its budget, is made beside the engine's loop."""
    asked = some("slow-planner")
    with well.faults.during(planner="slow", planner_s=0.3):
        account = serve(well, asked)
    all_once(well, account, asked)
    plan = status(well)["plan"]
    assert plan["ms_p99"] > 10 * plan["budget_ms"]
    assert plan["processor_share"] < plan["share"]
    assert plan["fallbacks"] == {}


@pytest.mark.parametrize("fault", ["raise", "nonsense"])
def test_a_planner_that_fails_means_order_of_arrival(well, fault):
    plans = status(well)["plan"]["count"]
    # the gate may still be shut after the slow plan of another test
    wait_for(lambda: _plans_after_one(well), lambda count: count > plans, 30)
    configure(well, reset_stats=True)
    before = metric(well.url, "lengthwise_fallbacks_total", cause="planner")
    asked = some(f"planner-{fault}")
    with well.faults.during(planner=fault):
        account = serve(well, asked)
    all_once(well, account, asked)
    plan = status(well)["plan"]
    assert plan["count"] > 0
    counted = metric(well.url, "lengthwise_fallbacks_total", cause="planner") - before
    assert counted == (plan["count"] if fault == "raise" else 0)


def _plans_after_one(server):
    serve(server, some(f"again-{time.monotonic_ns()}", 12))
    return status(server)["plan"]["count"]


# -- the predictor -----------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise", "nan", "shape", "rows"])
def test_a_prediction_that_is_none_is_counted(well, fault):
    before = metric(well.url, "lengthwise_predictions_total", outcome="failed")
    asked = some(f"predictor-{fault}")
    with well.faults.during(predictor=fault):
        account = serve(well, asked)
    all_once(well, account, asked)
    after = metric(well.url, "lengthwise_predictions_total", outcome="failed")
    assert after - before == len(asked)
    fallbacks = status(well)["plan"]["fallbacks"]
    assert fallbacks == {"no-prediction": len(asked)}


def test_a_slow_predictor_holds_nobody_for_long(well):
    """5 s a call: whoever asks first waits for the time-out, whoever comes later not at all."""
    late = {"outcome": "timeout|skipped"}
    with well.faults.during(predictor="slow", predictor_s=STUCK_S):
        first = some("turns-slow", 4)
        account = serve(well, first)
        all_once(well, account, first)
        assert account.elapsed_s < STUCK_S
        assert "predicting in a thread" in well.server_log.read_text(errors="replace")
        before = metric(well.url, "lengthwise_predictions_total", **late)
        asked = some("stays-slow")
        account = serve(well, asked)
        assert account.elapsed_s < STUCK_S
    all_once(well, account, asked)
    assert metric(well.url, "lengthwise_predictions_total", **late) - before == len(asked)
    for fault in ("raise", "nan", "rows"):  # in the thread now
        asked = some(f"thread-{fault}", 8)
        with well.faults.during(predictor=fault):
            account = serve(well, asked)
        all_once(well, account, asked)
    ok = metric(well.url, "lengthwise_predictions_total", outcome="ok")
    serve(well, some("well-again", 4))
    assert metric(well.url, "lengthwise_predictions_total", outcome="ok") == ok + 4


# -- clients and memory ------------------------------------------------------------------------


def test_clients_that_leave_while_everybody_is_preempted(well):
    """Those who stay have whole answers; those who leave have one row, as aborted.

    On a starved machine an answer may be whole before the server sees its client gone.
    """
    preempted = metric(well.url, "vllm:num_preemptions_total")
    stay = long_ones("stays", 10)
    leave = long_ones("leaves-midway", 6, leaves_after=2)
    flee = long_ones("leaves-before", 6, leaves_after=0)
    asked = [one for three in zip(stay, leave + stay[6:], flee + stay[6:], strict=True)
             for one in three]  # fmt: skip
    asked = list(dict.fromkeys(asked))
    account = serve(well, asked)
    all_once(well, account, asked)
    assert metric(well.url, "vllm:num_preemptions_total") > preempted
    rows = read_request_log(well.log_dir).set_index("request_id")
    left = rows[rows.index.str.contains("leaves-")]
    assert (left["status"] == "aborted").sum() > len(left) / 2
    assert set(left.loc[left["status"] != "aborted", "output_tokens"]) <= {500}
    assert status(well)["tracked"] == 0
    assert status(well)["queue"]["waiting"] == 0


# -- a server without middleware, its log on a disk of 256 KiB ---------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Only ``--scheduler-cls``: requests reach the engine without SLO and prediction."""
    root = tmp_path_factory.mktemp("bare")
    table = root / "replay.json"
    table.write_text(json.dumps(REPLAYED))
    with small_disk(root / "disk", "256k") as mounted:
        settings = ServerSettings(request_log=str(root / "disk" / "log"))
        with launch_server(
            "tiny",
            None,
            free_port(),
            [*SMALL_CACHE, "--scheduler-cls", SCHEDULER_CLASS, "--shutdown-timeout", "60"],
            log_path=root / "server.log",
            replay_table=table,
            cache_dir=tmp_path_factory.mktemp("cache"),
            env={SETTINGS_VARIABLE: str(settings.write(root / "settings.json"))},
        ) as handle:
            handle.wait_ready(240)
            yield SimpleNamespace(
                url=handle.url,
                log_dir=root / "disk" / "log",
                server_log=root / "server.log",
                handle=handle,
                small=mounted,
            )


def test_without_middleware_the_scheduler_still_serves(bare):
    asked = some("bare")
    all_once(bare, serve(bare, asked), asked)
    assert metric(bare.url, "lengthwise_fallbacks_total", cause="no-prediction") == len(asked)


def test_a_full_disk_costs_rows_of_the_log_only(bare):
    if not bare.small:
        pytest.skip("mounting a tmpfs is not allowed here")
    assert "loses rows" not in bare.server_log.read_text(errors="replace")
    with full(bare.log_dir.parent):
        for turn in range(3):
            asked = some(f"full-{turn}")
            account = serve(bare, asked)
            assert (account.answered, account.lost) == (len(asked), 0)
        said = wait_for(
            lambda: bare.server_log.read_text(errors="replace"), lambda text: "loses rows" in text
        )
        assert "No space left" in said
        assert all(file.stat().st_size for file in bare.log_dir.iterdir())
    asked = some("freed")
    all_once(bare, serve(bare, asked), asked)
    assert max(logged(bare.log_dir).values()) == 1


def test_sigterm_under_load_lets_everybody_finish(bare):
    """With vLLM's ``--shutdown-timeout``; without it vLLM kills its engine at once."""
    asked = some("term") + long_ones("term-long", 8)

    async def scenario():
        load = asyncio.create_task(drive(bare.url, asked))
        await asyncio.sleep(1.5)
        bare.handle.process.send_signal(signal.SIGTERM)
        return await load

    account = asyncio.run(scenario())
    bare.handle.process.wait(60)
    assert wait_for(lambda: _group(bare.handle.process.pid), lambda left: not left) == []
    all_once(bare, account, asked)


def _group(leader: int) -> list[str]:
    """Processes that still live in the server's group."""
    left = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError, psutil.Error):
            if os.getpgid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE:
                left.append(process.name())
    return left


# -- what is refused before any model loads ----------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def command(*args: object):
    """Our command line in this process; what it printed, and its exit code."""
    from lengthwise.training.cli.app import app

    return CliRunner().invoke(app, [str(arg) for arg in args])


def refused(*args: object) -> str:
    """The one line of a command that must be refused."""
    done = command(*args)
    assert done.exit_code == 2, done.output
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("lengthwise: error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"chat": {"tftt_ms": 3000}}, "tftt_ms"),
        ({"chat": {"ttft_ms": "soon"}}, "soon"),
        ({"chat": 3000}, "chat"),
        ([1], "object"),
    ],
)
def test_a_malformed_slo_table_is_refused_with_its_key(home, table, named):
    path = home / "slo.json"
    path.write_text(json.dumps(table))
    assert named in refused("serve", "tiny", "--predictor", "none", "--slo-table", path)


@pytest.mark.parametrize("name", ["card.json", "features.npz", "estimator"])
def test_a_corrupted_artifact_is_refused_before_the_model_loads(home, predictor_dir, name):
    broken = home / "broken"
    shutil.copytree(predictor_dir, broken)
    found = broken / name
    victim = max(found.rglob("*"), key=lambda f: f.stat().st_size) if found.is_dir() else found
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    assert "broken" in refused("serve", "tiny", "--predictor", broken)


# -- MLflow's store ----------------------------------------------------------------------------


@pytest.fixture
def store(home, monkeypatch):
    """A home with a database; the faults below are found before MLflow is asked anything."""
    from lengthwise.training.workspace import Workspace

    monkeypatch.setattr("lengthwise.training.registry.store.LOCK_TIMEOUT_S", 0.3)
    workspace = Workspace(home)
    workspace.mlruns.mkdir()
    with contextlib.closing(sqlite3.connect(workspace.database)) as database:
        database.execute("CREATE TABLE experiments (name)")
    return workspace


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    holder = sqlite3.connect(database, check_same_thread=False)
    holder.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        holder.rollback()
        holder.close()


@contextlib.contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """For everybody: rights do not stop root, a read-only mount does."""
    if os.geteuid():
        folder.chmod(0o500)
        for file in folder.glob("*.db*"):
            file.chmod(0o400)
        yield
        folder.chmod(0o700)
        for file in folder.glob("*.db*"):
            file.chmod(0o600)
        return
    bind = ["mount", "--bind", str(folder), str(folder)]
    if subprocess.run(bind, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def writers(predictor_dir, home):
    """The commands that write to the store."""
    rows = home / "rows.jsonl"
    rows.write_text(json.dumps({"prompt": "hi", "response": "ho"}) + "\n")
    return [
        ("register", predictor_dir),
        ("train", "--input", rows, "--register"),
        ("promote", "--workload", "mixed", "--source", "synthetic"),
    ]


def test_a_locked_store_is_one_line(store, predictor_dir, tmp_path):
    commands = [*writers(predictor_dir, tmp_path), ("serve", "tiny"), ("compare",)]
    with locked(store.database):
        for arguments in commands:
            assert "locked" in refused(*arguments), arguments


def test_a_read_only_store_is_one_line_for_writers(store, predictor_dir, tmp_path):
    commands = writers(predictor_dir, tmp_path)
    with read_only(store.mlruns):
        for arguments in commands:
            assert "cannot be used: attempt to write a readonly" in refused(*arguments), arguments


def test_a_missing_store_is_one_line_for_readers(home):
    for arguments in (("serve", "tiny"), ("promote", "--dry-run"), ("compare",)):
        assert "does not exist yet" in refused(*arguments), arguments
    assert not (home / "mlruns").exists()


@pytest.mark.chaos
def test_a_real_store_read_only_or_locked_halfway(predictor_dir, tmp_path, monkeypatch, home):
    """Reading goes on; a lock that falls after our look at the store is one line too."""
    from lengthwise.training.cli.serving.serve_inputs import find_predictor
    from lengthwise.training.registry.models import register
    from lengthwise.training.workspace import Workspace

    workspace = Workspace(home)
    register(predictor_dir, workspace=workspace)
    with read_only(workspace.mlruns):
        found = find_predictor("models:/output-length@champion", workspace)
    assert found is not None
    assert found.version == 1
    monkeypatch.setattr(
        "lengthwise.training.registry.connection.check_store", lambda uri, writing: None
    )
    with locked(workspace.database):
        assert "locked" in refused("register", predictor_dir)


# -- the long half: make chaos -----------------------------------------------------------------


@pytest.mark.chaos
def test_twenty_thousand_queued(well):
    """A thousand posts at once, twenty prompts each: all answered, none twice, none forgotten."""
    posts, each = 1000, 20
    asked = [
        ask(f"many-{i}", None, each, prompt=[f"Say {i}, {k}." for k in range(each)], max_tokens=1)
        for i in range(posts)
    ]
    deepest = []

    async def watch():
        async with httpx.AsyncClient(timeout=60) as client:
            while True:
                answer = await client.get(f"{well.url}/lengthwise/status")
                deepest.append(answer.json()["queue"]["waiting"])
                await asyncio.sleep(1)

    async def scenario():
        watcher = asyncio.create_task(watch())
        account = await drive(well.url, asked, timeout_s=500)
        watcher.cancel()
        return account

    account = asyncio.run(scenario())
    assert (account.answered, account.lost) == (posts, 0)
    assert max(deepest) > posts * each / 2
    names = [request.own_id for request in asked]
    assert wait_for_rows(well.log_dir, names, 60, each) == dict.fromkeys(names, each)
    # a flood may outrun the predictor, never the planner
    assert set(status(well)["plan"]["fallbacks"]) <= {"no-prediction"}
    assert status(well)["tracked"] == 0


def engine_of(pid: int) -> psutil.Process:
    """The engine process under a server's or a command's process."""
    for child in psutil.Process(pid).children(recursive=True):
        if "EngineCore" in (child.cmdline() or [""])[0]:
            return child
    raise AssertionError("no engine process")


def healthy(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False


@contextlib.contextmanager
def lengthwise_serve(home: Path, *options: str) -> Iterator[tuple[subprocess.Popen, str]]:
    """Our own command, until it is ready; ended with everything it started."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program = "from lengthwise.training.cli.app import app; app()"
    command = [sys.executable, "-c", program, "serve", "tiny", "--port", str(port), *options]
    with (home / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            [*command, *SMALL_CACHE], stdout=log, stderr=log, cwd=Path(__file__).parents[2]
        )
    try:
        assert wait_for(lambda: healthy(url) or process.poll() is not None, bool, 300)
        assert process.poll() is None, (home / "serve.log").read_text()[-2000:]
        yield process, url
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.mark.chaos
def test_the_engine_is_killed_and_started_again(home, predictor_dir):
    """The command ends with an error instead of hanging, and starts again on the same log."""
    log_dir = home / "log"
    options = ("--predictor", str(predictor_dir), "--request-log", str(log_dir))

    def of_length(prefix, n, tokens):
        return [ask(f"{prefix}-{i}", None, tokens, max_tokens=tokens) for i in range(n)]

    with lengthwise_serve(home, *options) as (process, url):
        before = of_length("before", 16, 20)
        account = asyncio.run(drive(url, before))
        assert (account.answered, account.lost) == (16, 0)
        wait_for_rows(log_dir, [one.own_id for one in before])

        async def scenario():
            load = asyncio.create_task(drive(url, of_length("during", 24, 400), timeout_s=60))
            await asyncio.sleep(1.5)
            engine_of(process.pid).kill()
            return await load

        account = asyncio.run(scenario())
        assert account.answered + account.lost == 24
        assert account.lost > 0
        assert process.wait(60) != 0
    with lengthwise_serve(home, *options) as (process, url):
        after = of_length("after", 16, 20)
        account = asyncio.run(drive(url, after))
        assert (account.answered, account.lost) == (16, 0)
        wait_for_rows(log_dir, [one.own_id for one in after])
    rows = logged(log_dir)
    assert max(rows.values()) == 1
    assert {one.own_id for one in before + after} <= rows.keys()


@pytest.mark.skipif(
    "live_file" not in ServerSettings.model_fields, reason="this server has no live file"
)
def test_a_corrupted_artifact_is_not_reloaded(well, predictor_dir, tmp_path):
    """Refused under load; the old predictor stays and nobody notices."""
    broken = tmp_path / "broken"
    shutil.copytree(predictor_dir, broken)
    victim = max((broken / "estimator").rglob("*"), key=lambda file: file.stat().st_size)
    victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2])
    live_file = Path(well.live_file)
    good = live_file.read_text()
    state = json.loads(good) | {"predictor": {"directory": str(broken), "version": "broken/1"}}
    refusals = metric(well.url, "lengthwise_reloads_total", outcome="refused")
    asked = some("reloading")

    async def scenario():
        load = asyncio.create_task(drive(well.url, asked))
        live_file.write_text(json.dumps(state))
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.post(f"{well.url}/lengthwise/reload")
        return await load, answer

    try:
        account, answer = asyncio.run(scenario())
        assert 400 <= answer.status_code < 500, answer.text
        all_once(well, account, asked)
        assert metric(well.url, "lengthwise_reloads_total", outcome="refused") > refusals
        assert status(well)["predictor_version"] == "test/1"
    finally:
        live_file.write_text(good)
        httpx.post(f"{well.url}/lengthwise/reload", timeout=60)
