"""`lengthwise promote`: a new predictor version takes over only if its SLO attainment is no worse.

Champion and challenger predict the same traffic (the server's request log, or a workload of the
arena), the scheduler plays it in the simulator with each one's lengths, request by request. The
challenger is promoted when

1. the 95 % interval of the paired attainment difference does not lie below zero, and
2. its 80 % intervals hold between 70 and 90 % of the answers, or no worse than the champion's.

What was compared and decided is a run in MLflow, tags on the version, and the alias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import answered, read_request_log
from lengthwise.data.slo import DEFAULT_CLASS, Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.fitting.metrics import coverage, interval, mae
from lengthwise.scheduler.policies.make import make_policy
from lengthwise.scheduler.profile import EngineProfile
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.training.bench.records import RequestRecord, paired_difference
from lengthwise.training.bench.simulator_runner import to_records
from lengthwise.training.bench.workload import WorkloadSource, capacity_rps, to_sim
from lengthwise.training.registry.models import ResolvedPredictor
from lengthwise.training.registry.promotions import log_promotion, make_champion
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

COVERED = (0.70, 0.90)
LEAST_REQUESTS = 100
SEARCH_STEPS = 80
_SECONDS = 1e3


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to replay, with what a predictor may read of each: text, or logged features."""

    name: str
    requests: tuple[WorkloadRequest, ...]
    features: np.ndarray | None = None
    feature_contract: str | None = None

    def predict(self, predictor: LengthPredictor, label: str) -> LengthDistribution:
        """The predictor's word on every request; InputError if it cannot read them."""
        classes = [r.slo.slo_class for r in self.requests]
        if self.features is None:
            return predictor.predict(
                [r.prompt for r in self.requests],
                classes,
                [r.prompt_tokens for r in self.requests],
            )
        if predictor.feature_contract != self.feature_contract:
            raise InputError(
                f"{self.name} holds no text, only features {self.feature_contract}; {label} reads "
                f"{predictor.feature_contract}: log prompts, or judge by --workload"
            )
        return predictor.predict_features(self.features, classes)


@dataclass(frozen=True, slots=True)
class Side:
    """One version on the traffic: what it attained, how well it predicted."""

    label: str
    attainment: float
    coverage: float
    mae: float


@dataclass(frozen=True, slots=True)
class Decision:
    """The comparison and what follows from it."""

    champion: Side
    challenger: Side
    difference: float
    difference_ci95: tuple[float, float]
    traffic: str
    requests: int
    load: float | None
    reasons: tuple[str, ...]

    @property
    def promote(self) -> bool:
        """Whether nothing speaks against the challenger."""
        return not self.reasons

    def to_json(self) -> dict[str, Any]:
        """The document of ``lengthwise promote --json`` and of the MLflow run."""
        return {
            "promote": self.promote,
            "reasons": list(self.reasons),
            "traffic": self.traffic,
            "requests": self.requests,
            "load": self.load,
            "attainment_difference": self.difference,
            "difference_ci95": list(self.difference_ci95),
            **{
                name: {
                    "predictor": side.label,
                    "attainment": side.attainment,
                    "coverage": side.coverage,
                    "mae": side.mae,
                }
                for name, side in (("champion", self.champion), ("challenger", self.challenger))
            },
        }


def logged_traffic(folder: Path, most: int) -> Traffic:
    """The last `most` finished requests of a log, at the times they arrived.

    Text where every request has it, else the features of the contract most of them have.
    """
    frame = read_request_log(folder)
    frame = frame[answered(frame)]
    frame = frame.sort_values("arrival_unix_s").tail(most)
    from lengthwise.predictor.fitting.fit import logged_features

    features = contract = None
    if len(frame) and frame["prompt"].isna().any():
        if frame["feature_contract"].isna().all():
            raise InputError(f"{folder} holds neither prompt text nor features")
        contract = str(frame["feature_contract"].mode()[0])
        frame = frame[frame["feature_contract"] == contract]
        features = logged_features(frame)
    if len(frame) < LEAST_REQUESTS:
        raise InputError(
            f"{folder} has {len(frame)} finished requests to replay, at least {LEAST_REQUESTS} "
            "are needed"
        )
    first_s = float(frame["arrival_unix_s"].min())
    requests = tuple(
        WorkloadRequest(
            row.arrival_unix_s - first_s,
            int(row.prompt_tokens),
            int(row.output_tokens),
            Slo(
                _seconds(row.slo_ttft_ms),
                _seconds(row.slo_tpot_ms),
                _seconds(row.slo_e2e_ms),
                row.slo_class or DEFAULT_CLASS,
            ),
            prompt=row.prompt if isinstance(row.prompt, str) else None,
        )
        for row in frame.itertuples()
    )
    return Traffic(f"log:{folder.name}", requests, features, contract)


def compare(
    champion: ResolvedPredictor,
    challenger: ResolvedPredictor,
    traffic: Sequence[Traffic],
    profile: EngineProfile,
    *,
    load: float | None = None,
) -> Decision:
    """Play every draw of the traffic with both versions' lengths and decide.

    `load` rescales the arrivals to that multiple of the profile's capacity; None keeps their pace.
    """
    from lengthwise.predictor.model import LengthPredictor

    records: dict[str, list[RequestRecord]] = {"champion": [], "challenger": []}
    said: dict[str, list[LengthDistribution]] = {"champion": [], "challenger": []}
    versions = {"champion": champion, "challenger": challenger}
    predictors = {name: LengthPredictor.load(v.directory) for name, v in versions.items()}
    for repeat, part in enumerate(traffic):
        requests = _at_load(part, profile, load)
        for name, predictor in predictors.items():
            lengths = part.predict(predictor, versions[name].label)
            # a fixed amount of search: the machine's mood must not decide
            policy = make_policy("sa", seed=repeat, iterations=SEARCH_STEPS)
            outcome = simulate(to_sim(requests, lengths.quantiles, lengths.levels), policy, profile)
            records[name] += to_records(requests, outcome, repeat, lengths.median())
            said[name].append(lengths)
    true = np.array([r.output_tokens for part in traffic for r in part.requests], float)
    sides = {
        name: _side(versions[name].label, records[name], said[name], true) for name in versions
    }
    paired = paired_difference(records["challenger"], records["champion"])
    low, high = paired["difference_ci95"]
    return Decision(
        champion=sides["champion"],
        challenger=sides["challenger"],
        difference=float(paired["attainment_difference"]),
        difference_ci95=(float(low), float(high)),
        traffic=traffic[0].name,
        requests=true.size,
        load=load,
        reasons=tuple(_objections(sides["champion"], sides["challenger"], float(high))),
    )


def promote(
    decision: Decision,
    challenger: ResolvedPredictor,
    *,
    force: bool,
    dry_run: bool,
    workspace: Workspace,
) -> bool:
    """Write the decision to MLflow and move the alias if it says so, or by force.

    Returns whether the challenger is champion now. A dry run writes nothing.
    """
    if dry_run:
        return False
    moved = decision.promote or force
    log_promotion(
        decision.to_json() | {"forced": force and not decision.promote, "promoted": moved},
        challenger,
        workspace=workspace,
    )
    if moved:
        make_champion(challenger, workspace=workspace)
    return moved


def _objections(champion: Side, challenger: Side, difference_high: float) -> list[str]:
    """What speaks against the challenger, in words."""
    found = []
    if difference_high < 0.0:
        found.append("its SLO attainment is worse beyond noise")
    low, high = COVERED
    if not low <= challenger.coverage <= high and _off(challenger) > _off(champion):
        found.append(
            f"its 80 % intervals hold {challenger.coverage:.0%} of the answers, "
            f"outside {low:.0%} to {high:.0%}"
        )
    return found


def _off(side: Side) -> float:
    return abs(side.coverage - 0.8)


def _side(
    label: str,
    records: Sequence[RequestRecord],
    said: Sequence[LengthDistribution],
    true: np.ndarray,
) -> Side:
    low, high = (np.concatenate(parts) for parts in zip(*map(interval, said), strict=True))
    median = np.concatenate([lengths.median() for lengths in said])
    attained = float(np.mean([record.met for record in records]))
    return Side(label, attained, coverage(true, low, high), mae(true, median))


def _at_load(part: Traffic, profile: EngineProfile, load: float | None) -> list[WorkloadRequest]:
    if load is None:
        return list(part.requests)
    source = WorkloadSource(part.name, part.name, requests=part.requests)
    return source.draw(len(part.requests), load * capacity_rps(source, profile), 0)


def _seconds(milliseconds: float | None) -> float | None:
    if milliseconds is None or np.isnan(milliseconds):
        return None
    return float(milliseconds) / _SECONDS
