"""Plan time against queue length: one table, milliseconds.

python -m benchmarks.simulator.planner.plan_time --repeats 300
"""

from __future__ import annotations

import os
import time
from dataclasses import replace

import numpy as np

from benchmarks.common import finish, note, percentiles_ms, plain_parser, print_table
from benchmarks.simulator.cells import Cell, build
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Problem, RequestArrays
from lengthwise.scheduler.profile import load_profile

SIZES = ((16, 32), (64, 32), (256, 32), (256, 256), (1024, 256), (4096, 256), (20_000, 256))


def queue_problem(waiting: int, running: int) -> Problem:
    """An overloaded moment of the ``mixed`` workload with learned-like lengths."""
    workload, _ = build(Cell("mixed", 2.0, "poisson", "learned", 0, waiting + running))
    profile = load_profile("tiny-cpu")

    def rows(index: np.ndarray, generated: np.ndarray | float, left: np.ndarray | None):
        return RequestArrays.build(
            workload.quantiles[index],
            np.linspace(0.0, 20.0, len(index)),
            prompt_tokens=workload.prompt_tokens[index],
            generated_tokens=generated,
            prefill_left_tokens=left,
            ttft_s=workload.ttft_s[index],
            tpot_s=workload.tpot_s[index],
            e2e_s=workload.e2e_s[index],
        )

    index = np.arange(waiting + running)
    return Problem(
        now_s=20.0,
        levels=workload.levels,
        waiting=rows(index[:waiting], 0.0, None),
        running=rows(index[waiting:], 40.0, np.zeros(running)),
        capacity=replace(profile.capacity, max_num_seqs=running, kv_tokens=10**7),
        step_time=profile.step_time,
        max_wait_s=120.0,
        arrival_rate_rps=20.0,
    )


def main() -> None:
    parser = plain_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--budget-ms", type=float, default=1.0)
    parser.add_argument("--policies", nargs="+", default=["feasible-edf", "sa-paper", "sa"])
    args = parser.parse_args()
    note(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    found = []
    for waiting, running in SIZES:
        problem = queue_problem(waiting, running)
        for name in args.policies:
            policy = make_policy(name, budget_s=args.budget_ms / 1e3)
            policy.warm_up()
            policy(problem)
            taken_s, evaluations = [], 0
            for repeat in range(args.repeats):
                moment = replace(problem, now_s=20.0 + 0.1 * (repeat % 50))
                began = time.perf_counter()
                evaluations = policy(moment).evaluations
                taken_s.append(time.perf_counter() - began)
            row = {"policy": name, "waiting": waiting, "running": running}
            row |= {"least_ms": 1e3 * min(taken_s), **percentiles_ms(taken_s)}
            found.append(row | {"evaluations": evaluations})
            note(f"{name}, {waiting} waiting: {row['p50_ms']:.2f} ms")
    rows = [[f"{v:.2f}" if isinstance(v, float) else v for v in row.values()] for row in found]
    print_table([name.replace("_", " ") for name in found[0]], rows)
    finish("plan_time", found)


if __name__ == "__main__":
    main()
