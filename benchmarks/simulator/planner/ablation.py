"""What each part of the planner brings: ``sa`` with one part off at a time, on every shape.

    python -m benchmarks.simulator.planner.ablation --out ablation.jsonl --seeds 3
    python -m benchmarks.simulator.planner.ablation --out ablation.jsonl --table

Every variant serves the same requests as the whole planner and arrival order, with a fixed number
of search steps a plan. Finished runs in ``--out`` are not played again; ``--table`` plays none.
"""

from __future__ import annotations

from benchmarks.common import finish, plain_parser
from benchmarks.simulator.grid import read_lines
from benchmarks.simulator.planner.variants_table import axis_table, figures, main_table
from benchmarks.simulator.shapes import add_cells, play_missing
from lengthwise.scheduler.policies.annealing_settings import Settings

WHOLE = "sa"
PARTS = Settings().parts  # that the search changes


def parts(*chosen: str) -> str:
    """``sa`` whose search changes these parts of a plan."""
    return f"{WHOLE}:parts={'+'.join(chosen)}"


def without(part: str) -> str:
    """``sa`` whose search leaves one part alone."""
    return parts(*(other for other in PARTS if other != part))


VARIANTS = {
    "no search": "sa:iterations=0",
    "twice the search": "sa:iterations=96",
    "slots taken back too": parts(*PARTS, "slots"),
    "no batch limit": without("limits"),
    "no prefill limit": without("prefill"),
    "no prefill period": without("period"),
    "no limits": parts("order"),
    "no search over orders": without("order"),
    "orders searched by guesses too": "sa:uncertain_order=true",
    "no trust": "sa:trust=false",
    "no expected arrivals": "sa:most_expected=0",
}


def main() -> None:
    """Play what is left, then the tables, and the figures as JSON."""
    parser = plain_parser(__doc__)
    add_cells(parser)
    parser.set_defaults(seeds=3, lengths=["oracle"], loads=[0.8, 1.2, 1.6], requests=1000)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    args = parser.parse_args()
    chosen = {name: VARIANTS[name] for name in args.variants}
    args.policies = ["fcfs", WHOLE, *chosen.values()]
    if not args.table:
        play_missing(args)
    lines = read_lines(args.out)
    rows = figures(lines, chosen, WHOLE)
    print("\n".join(main_table(rows)), end="\n\n")
    for axis in ("shape", "workload"):
        print("\n".join(axis_table(lines, chosen, WHOLE, axis)), end="\n\n")
    finish("ablation", rows)


if __name__ == "__main__":
    main()
