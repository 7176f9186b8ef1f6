"""Drift alarms: false ones per 10,000 requests, and requests until a true one.

    python -m benchmarks.predictor.drift_alarms --seeds 0 --streams 20

The real predictor on a pack's test questions, drawn again and again in random order. Drift is the
same answers, each so many times as long. Delays count all requests, of whatever class, until the
first alarm of any class or cause.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.common import finish, fitted, note, parser, print_table
from lengthwise.predictor.serving.drift import CAUSES, DriftMonitor, DriftSettings

FACTORS = (1.25, 1.5, 2.0, 0.67)
CALM = 10_000  # requests of a stream without drift
BEFORE, AFTER = 1_000, 4_000  # requests of a stream with it


@dataclass(frozen=True)
class Answers:
    """What was predicted and what came, one row a test question."""

    quantiles: np.ndarray  # (n, 3): .1, .5, .9
    tokens: np.ndarray
    cut: np.ndarray
    slo_class: list[str]


def answers_of(pack: str, seed: int, jobs: int) -> Answers:
    parts, predictor = fitted(pack, seed, jobs)
    test = parts["test"]
    names = ("prompt", "slo_class", "prompt_tokens")
    said = predictor.predict(*(test[name].tolist() for name in names))
    rows = np.column_stack([said.quantile(level) for level in (0.1, 0.5, 0.9)])
    return Answers(
        rows,
        test["output_tokens"].to_numpy(float),
        test["censored"].to_numpy(bool),
        test["slo_class"].tolist(),
    )


class Stream:
    """Draws from the answers, fed to one monitor."""

    def __init__(self, answers: Answers, settings: DriftSettings, seed: int) -> None:
        self.answers = answers
        self.monitor = DriftMonitor(settings)
        self.rng = np.random.default_rng(seed)
        self.seen = 0
        self.update_s = 0.0

    def feed(self, count: int, factor: float = 1.0, stop: bool = False) -> list[Any]:
        """Events of so many requests; with ``stop``, up to the first alarm."""
        events: list[Any] = []
        a = self.answers
        for row in self.rng.integers(len(a.tokens), size=count):
            self.seen += 1
            tokens = max(1.0, round(a.tokens[row] * factor))
            said, cut = a.quantiles[row].tolist(), bool(a.cut[row])
            began_s = time.thread_time()
            events += self.monitor.update(said, tokens, a.slo_class[row], self.seen, cut=cut)
            self.update_s += time.thread_time() - began_s
            if stop and any(event.raised for event in events):
                break
        return events


def false_alarms(answers: Answers, settings: DriftSettings, streams: int) -> dict[str, float]:
    """Alarms raised per 10,000 requests, by cause."""
    raised: Counter[str] = Counter()
    update_s = 0.0
    for seed in range(streams):
        stream = Stream(answers, settings, seed)
        raised.update(event.alarm.cause for event in stream.feed(CALM) if event.raised)
        update_s += stream.update_s
    figures = {cause: raised[cause] / streams for cause in CAUSES}
    return figures | {"update_us": update_s / (streams * CALM) * 1e6}


def delays(
    answers: Answers, settings: DriftSettings, factor: float, streams: int
) -> dict[str, Any]:
    """Requests from the start of the drift to the first alarm, and what it was."""
    found, causes = [], Counter[str]()
    for seed in range(streams):
        stream = Stream(answers, settings, 1_000 + seed)
        stream.feed(BEFORE)
        for alarm in stream.monitor.alarms:  # one already up would be taken for the answer
            causes["already " + alarm.cause] += 1
        raised = [e for e in stream.feed(AFTER, factor, stop=True) if e.raised]
        if raised:
            found.append(stream.seen - BEFORE)
            causes[raised[0].alarm.cause] += 1
    return {
        "factor": factor,
        "found": len(found) / streams,
        "median": float(np.median(found)) if found else None,
        "p90": float(np.quantile(found, 0.9)) if found else None,
        "first": dict(causes),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--streams", type=int, default=20)
    options = arguments.parse_args()
    settings = DriftSettings()
    result: dict[str, Any] = {}
    false_rows, delay_rows = [], []
    for pack in options.packs:
        note(f"{pack}: fitting")
        answers = answers_of(pack, options.seeds[0], options.jobs)
        calm = false_alarms(answers, settings, options.streams)
        false_rows.append(
            [pack, *(f"{calm[cause]:.2f}" for cause in CAUSES), f"{calm['update_us']:.0f}"]
        )
        result[pack] = {"false_per_10000": calm, "delays": []}
        for factor in FACTORS:
            note(f"{pack}: factor {factor:g}")
            late = delays(answers, settings, factor, options.streams)
            result[pack]["delays"].append(late)
            first = ", ".join(f"{name} {n}" for name, n in sorted(late["first"].items()))
            shown = ["-" if late[k] is None else f"{late[k]:.0f}" for k in ("median", "p90")]
            delay_rows.append([pack, f"{factor:g}", f"{late['found']:.0%}", *shown, first])
    print_table(
        ["pack", *(f"{c}, per 10,000" for c in CAUSES), "CPU microseconds a request"], false_rows
    )
    print_table(
        ["pack", "lengths times", "found", "median delay", "p90 delay", "first alarm"], delay_rows
    )
    finish("drift_alarms", result)


if __name__ == "__main__":
    main()
