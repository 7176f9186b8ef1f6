"""Prompts no version has learned from, each answered twice at several temperatures.

The first answers judge the predictors. The second ones show where the ceiling is: each is a single
draw of what a perfect predictor, who sees the prompt alone, would know, and errs farther than it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lengthwise.data.workload import WorkloadRequest
from lengthwise.predictor.fitting import metrics
from lengthwise.predictor.model import LengthPredictor
from lengthwise.training.bench.comparison.workload_source import WorkloadSource
from lengthwise.training.bench.engines.generation import Generation
from lengthwise.training.real_demo.own_traffic import ask

JUDGED_SPLIT = "test"
CLASS_ALONE = "the class's median"
CEILING = "the second answer"
PERFECT = "a perfect predictor, reckoned from it"
MIN_CLASS_ROWS = 15  # below, a class's tau is left out of the mean


def judged_prompts(source: WorkloadSource, number: int, seed: int) -> list[WorkloadRequest]:
    """At most so many requests of the side that is judged on, each prompt once."""
    drawn = replace(source, split=JUDGED_SPLIT).draw(2 * number, 1.0, seed)
    return list({request.prompt: request for request in drawn}.values())[:number]


def answer_twice(
    url: str,
    model: str,
    requests: Sequence[WorkloadRequest],
    generations: Sequence[Generation],
    *,
    slots: int,
    on_done: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Lengths of the first and of the second answers, one document for each generation.

    `first`, `second`: tokens in the order of the requests, None for an answer that was lost.

    Raises:
        BenchError: more than one in twenty got no answer.
    """
    found = []
    for generation in generations:
        lengths: list[list[int | None]] = []
        cut = 0
        for turn in range(2):
            # another order, so that greedy answers meet other neighbours in their batch
            order = np.random.default_rng(turn).permutation(len(requests)).tolist()
            drawn = replace(generation, seed=generation.seed + 1 + turn)
            replies = ask(url, model, [requests[i] for i in order], drawn, slots=slots,
                          on_done=on_done)  # fmt: skip
            tokens: list[int | None] = [None] * len(requests)
            for i, reply in zip(order, replies, strict=True):
                tokens[i] = None if reply.error else reply.output_tokens
            cut += sum(reply.cut for reply in replies) if turn == 0 else 0
            lengths.append(tokens)
        found.append({
            "temperature": generation.temperature, "first": lengths[0], "second": lengths[1],
            "cut_at_max_tokens": cut, "lost": sum(one is None for turn in lengths for one in turn),
        })  # fmt: skip
    return found


def judge(
    requests: Sequence[WorkloadRequest],
    answers: Mapping[str, Any],
    predictors: Mapping[str, LengthPredictor],
    by_class: LengthPredictor,
    limit: int,
) -> dict[str, Any]:
    """How well each predictor, the class alone and a second answer say the first's length.

    `answers` is one document of `answer_twice`; prompts with a lost answer are left out. What the
    class alone says are the medians of the answers that `by_class` learned from.
    """
    pairs = [
        (request, first, second)
        for request, first, second in zip(
            requests, answers["first"], answers["second"], strict=True
        )
        if first is not None and second is not None
    ]
    true = np.array([first for _, first, _ in pairs], float)
    again = np.array([second for _, _, second in pairs], float)
    prompts = [request.prompt for request, _, _ in pairs]
    classes = [request.slo.slo_class for request, _, _ in pairs]
    tokens = [request.prompt_tokens for request, _, _ in pairs]

    def scored(said: np.ndarray) -> dict[str, Any]:
        taus = metrics.task_taus(true, said, classes, MIN_CLASS_ROWS)
        return {
            "tau": metrics.kendall_tau(true, said),
            "within_class_tau": metrics.mean_tau(taus),
            "mae": metrics.mae(true, said),
            "coverage": None,
            "coverage_due": None,
        }

    rows: dict[str, Any] = {}
    for name, predictor in predictors.items():
        said = predictor.predict(prompts, classes, tokens, limit)
        rows[name] = scored(said.median()) | {
            "coverage": metrics.coverage(true, *metrics.interval(said)),
            "coverage_due": float(metrics.interval_due(said).mean()),
        }
    priors = {
        one: float(np.interp(0.5, by_class.levels, by_class.class_prior(one)))
        for one in set(classes)
    }
    rows[CLASS_ALONE] = scored(np.minimum([priors[one] for one in classes], limit))
    rows[CEILING] = scored(again)
    rows[PERFECT] = perfect(rows[CEILING])
    return {
        "temperature": answers["temperature"],
        "answers": len(pairs),
        "cut_at_max_tokens": answers["cut_at_max_tokens"],
        "mean_tokens": float(true.mean()),
        "median_tokens": float(np.median(true)),
        "tau_known_to": tau_half_width(len(pairs)),
        "same_length_twice": float((true == again).mean()),
        "rows": rows,
    }


def perfect(second: Mapping[str, Any]) -> dict[str, Any]:
    """What a predictor that knew each prompt's distribution would score, given two draws' score.

    Of two draws both err, of a draw and its expectation one: 1 / sqrt 2 of the error. The tau is
    that of a Gaussian copula, two draws correlating as the square of a draw and its expectation.
    """

    def raised(tau: float | None) -> float | None:
        if tau is None:
            return None
        correlation = math.sin(math.pi / 2 * max(tau, 0.0))
        return 2 / math.pi * math.asin(math.sqrt(correlation))

    return {
        "tau": raised(second["tau"]),
        "within_class_tau": raised(second["within_class_tau"]),
        "mae": second["mae"] / math.sqrt(2),
        "coverage": None,
        "coverage_due": None,
    }


def tau_half_width(n: int) -> float:
    """Half the 95 % interval of Kendall's tau of n pairs without a connection."""
    return 1.96 * math.sqrt(2 * (2 * n + 5) / (9 * n * (n - 1))) if n > 1 else math.inf
