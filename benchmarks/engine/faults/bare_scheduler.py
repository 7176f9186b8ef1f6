"""Our scheduler without our middleware; then SIGTERM under load."""

from __future__ import annotations

from benchmarks.engine.faults.fault_rows import Metric
from benchmarks.engine.faults.fault_servers import Bench, running
from benchmarks.engine.faults.server_endings import ended, terminate
from lengthwise.scheduler.serving.settings import SETTINGS_VARIABLE, ServerSettings
from lengthwise.scheduler.vllm_adapter.vllm_config import SCHEDULER_CLASS

FAULTS = ("middleware absent", "SIGTERM under load")
"""The rows that this part makes."""


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
            bench.book.add(ended(bench, pair, "SIGTERM under load", terminate))
