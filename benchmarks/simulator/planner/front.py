"""Attainment against latency and throughput: ``sa`` over its two prices, on every shape.

    python -m benchmarks.simulator.planner.front --out front.jsonl --loads 1.2 1.6 --seeds 3
    python -m benchmarks.simulator.planner.front --out front.jsonl --table

``latency_price`` is what a request's mean time in the system is worth, ``tokens_price`` what its
mean work is, in attained requests. Each is varied with the other at its default.
"""

from __future__ import annotations

from benchmarks.common import finish, plain_parser
from benchmarks.simulator.grid import read_lines
from benchmarks.simulator.planner.variants_table import ZONES, figures, main_table, undominated
from benchmarks.simulator.shapes import add_cells, play_missing

WHOLE = "sa"
LATENCY_PRICES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)
TOKENS_PRICES = (0.0, 0.25, 0.5, 2.0)


def variants(latency: tuple[float, ...], tokens: tuple[float, ...]) -> dict[str, str]:
    """Name to policy of every price."""
    priced = [("latency_price", price) for price in latency]
    priced += [("tokens_price", price) for price in tokens]
    return {f"{knob} {price:g}": f"sa:{knob}={price}" for knob, price in priced}


def main() -> None:
    """Play what is left, then the front, and the figures as JSON."""
    parser = plain_parser(__doc__)
    add_cells(parser)
    parser.set_defaults(seeds=3, lengths=["oracle"], loads=[1.2, 1.6], requests=1000)
    parser.add_argument("--latency-prices", nargs="+", type=float, default=list(LATENCY_PRICES))
    parser.add_argument("--tokens-prices", nargs="+", type=float, default=list(TOKENS_PRICES))
    parser.add_argument("--table", action="store_true", help="only the tables of what is there")
    args = parser.parse_args()
    chosen = variants(tuple(args.latency_prices), tuple(args.tokens_prices))
    args.policies = ["fcfs", WHOLE, *chosen.values()]
    if not args.table:
        play_missing(args)
    rows = figures(read_lines(args.out), chosen, WHOLE)
    print("\n".join(main_table(rows)), end="\n\n")
    fronts = {zone: undominated(rows, zone) for zone in ZONES}
    for zone, names in fronts.items():
        if names:
            print(f"{zone}, on the front: {', '.join(names)}.", end="\n\n")
    finish("front", {"rows": rows, "front": fronts})


if __name__ == "__main__":
    main()
