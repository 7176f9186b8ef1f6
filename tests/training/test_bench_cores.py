"""The client's thread keeps off the cores that an engine is bound to."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from bench_stub import Stub, running

from lengthwise.training.bench.engines import servers as bench_servers
from lengthwise.training.bench.engines.cores import bound_cores, keep_off, off_cores, punctual
from lengthwise.training.bench.engines.servers import start_servers
from lengthwise.training.bench.results.provenance import describe_machine, usable_cores

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="no cores to choose from",
)
# a server's first process, which may run anywhere, and under it a worker bound to one core
SERVER = """
import os, subprocess, sys
worker = subprocess.Popen([sys.executable, "-S", "-c", '''
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
print("bound", flush=True)
time.sleep(600)
''', sys.argv[1]])
worker.wait()
"""


@pytest.fixture
def server():
    """(a server that runs in a session of its own, the core its worker is bound to)."""
    core = min(os.sched_getaffinity(0))
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", SERVER, str(core)],
        start_new_session=True, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout.readline() == "bound\n"
        yield process, core
    finally:
        os.killpg(process.pid, 9)
        process.wait()
        process.stdout.close()


def test_the_cores_of_workers_are_found_and_those_of_others_are_not(server):
    process, core = server
    # a session of its own: in the tests' own one, a neighbour may be bound just now
    with subprocess.Popen(
        [sys.executable, "-S", "-c", "input()"], start_new_session=True, stdin=subprocess.PIPE
    ) as unbound:
        assert bound_cores([process.pid]) == {core}
        assert bound_cores([unbound.pid]) == set()
        assert bound_cores([]) == set()
        unbound.communicate(b"\n")


def test_what_is_not_bound_is_kept_off_them(server):
    process, core = server
    own = os.sched_getaffinity(0)
    keep_off([process.pid], {core})
    assert os.sched_getaffinity(process.pid) == own - {core}
    assert bound_cores([process.pid]) >= {core}  # the worker stays where it is
    with subprocess.Popen(["sleep", "9"], start_new_session=True) as free:
        for cores in (own, set(), {10_000}):
            keep_off([free.pid], cores)
            assert os.sched_getaffinity(free.pid) == own
        free.kill()


@pytest.mark.parametrize("fails", [False, True])
def test_the_thread_keeps_off_them_until_the_end(fails):
    own = os.sched_getaffinity(0)
    core = max(own)
    with contextlib.suppress(KeyError), off_cores({core}):
        assert os.sched_getaffinity(0) == own - {core}
        if fails:
            raise KeyError
    assert os.sched_getaffinity(0) == own


def test_a_thread_is_punctual_until_the_end_where_it_may_be_and_its_children_are_not():
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    ask = [sys.executable, "-S", "-c", "import os; print(os.sched_getscheduler(0))"]
    with punctual():
        within = os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK
        child = int(subprocess.run(ask, capture_output=True, check=True).stdout)
    assert within in (os.SCHED_RR, before[0])
    assert child == os.SCHED_OTHER
    assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before


def test_a_machine_is_described_with_the_cores_that_were_left_to_its_engine():
    usable_cores.cache_clear()
    own = os.sched_getaffinity(0)
    with off_cores({min(own)}):
        assert len(os.sched_getaffinity(0)) == len(own) - 1
        assert describe_machine()["cores"] == len(own)


def test_where_no_core_is_left_or_none_is_bound_nothing_changes():
    own = os.sched_getaffinity(0)
    for cores in (own, own | {10_000}, set(), {10_000}):
        with off_cores(cores):
            assert os.sched_getaffinity(0) == own


def test_a_bench_keeps_off_the_cores_of_both_servers(monkeypatch, server, tmp_path):
    process, core = server
    own = os.sched_getaffinity(0)
    with running(Stub()) as stub:

        @contextlib.contextmanager
        def launched(*args, **options):
            yield SimpleNamespace(url=stub.url, process=process, wait_ready=lambda limit_s: None)

        monkeypatch.setattr(bench_servers, "launch_server", launched)
        with start_servers("tiny", directory=tmp_path / "run", cache_dir=tmp_path):
            assert os.sched_getaffinity(0) == own - {core}
    assert os.sched_getaffinity(0) == own
