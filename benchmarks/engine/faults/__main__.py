"""The fault table: each fault on the real engine, stock vLLM beside ours, the same requests.

Both servers are up and loaded in turn, closed loop with twice as many clients as slots, so that
the engine never idles for want of requests; each row is loaded so several times, and its ratio of
answer tokens a second, while there is a queue, stands with the 95 % interval of these pairs.
Faults inside our processes are injected by ``tests/vllm/faults``, the rest is done to them from
outside. Exit status 1 if ours lost a request that stock answered, or has one twice in its log.

Each row is written to ``--out`` as it is done; rows that stand there are not made again.

    python -m benchmarks.engine.faults --out faults.jsonl        # 45 minutes on 2 quiet cores
    python -m benchmarks.engine.faults --seconds 3 --pairs 1     # does it work?
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from benchmarks.common import finish, note, print_table
from benchmarks.engine.faults import bare_scheduler, faults_inside, small_cache
from benchmarks.engine.faults.fault_rows import Book
from benchmarks.engine.faults.fault_servers import Bench
from lengthwise.training.bench.engines.servers import leaving_on_sigterm

PARTS: dict[str, tuple[Callable[[Bench], None], tuple[str, ...]]] = {
    "injected": (faults_inside.injected_faults, faults_inside.FAULTS),
    "bare": (bare_scheduler.without_middleware, bare_scheduler.FAULTS),
    "small": (small_cache.small_memory, small_cache.FAULTS),
}
"""What needs servers of its own, and the rows that it makes."""


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


if __name__ == "__main__":
    sys.exit(main())
