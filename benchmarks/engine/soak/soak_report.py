"""What a soak gave: criteria, tables, the document."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.common import finish, print_table
from benchmarks.engine.soak.soak_routes import ROUTES
from benchmarks.engine.soak.soak_run import Soak
from benchmarks.engine.soak.soak_samples import PROCESSES, WARM_UP_SHARE, growth
from benchmarks.engine.soak.soak_traffic import BURST, mean_load

MAX_WAIT_S = 60.0
WAIT_SLACK_S = 5.0  # a step and the rest of the running answers stand between due and admitted
MOST_MB_PER_10K = 10.0


def report(
    run: Soak, rows: Counter[str], tenants: Counter[str], tracebacks: int, figure: Path
) -> int:
    """Print the summary; 1 if a criterion does not hold."""
    tally, last = run.tally, run.samples[-1]
    grown = [growth(run.samples, name) for name in PROCESSES]
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
