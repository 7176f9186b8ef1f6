"""Plan time against queue length: one table, milliseconds.

python -m benchmarks.simulator.plan_time --repeats 300
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace

import numpy as np

from benchmarks.simulator.cells import LEVELS, Cell, build
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays
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
        levels=LEVELS,
        waiting=rows(index[:waiting], 0.0, None),
        running=rows(index[waiting:], 40.0, np.zeros(running)),
        capacity=replace(profile.capacity, max_num_seqs=running, kv_tokens=10**7),
        step_time=profile.step_time,
        max_wait_s=120.0,
        arrival_rate_rps=20.0,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=300)
    parser.add_argument("--budget-ms", type=float, default=1.0)
    parser.add_argument("--policies", nargs="+", default=["feasible-edf", "sa-paper", "sa"])
    args = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print("| policy | waiting | running | least ms | p50 ms | p99 ms | evaluations |")
    print("|---|---|---|---|---|---|---|")
    for waiting, running in SIZES:
        problem = queue_problem(waiting, running)
        assert isinstance(problem.capacity, Capacity)
        for name in args.policies:
            policy = make_policy(name, budget_s=args.budget_ms / 1e3)
            policy.warm_up()
            policy(problem)
            taken, evaluations = [], 0
            for repeat in range(args.repeats):
                moment = replace(problem, now_s=20.0 + 0.1 * (repeat % 50))
                began = time.perf_counter()
                evaluations = policy(moment).evaluations
                taken.append(1e3 * (time.perf_counter() - began))
            p50, p99 = np.quantile(taken, [0.5, 0.99])
            print(
                f"| {name} | {waiting} | {running} | {min(taken):.2f} | {p50:.2f} | {p99:.2f} "
                f"| {evaluations} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
