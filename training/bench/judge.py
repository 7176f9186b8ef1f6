"""`lengthwise promote`: a new predictor version takes over only if its SLO attainment is no worse.

Champion and challenger predict the same traffic (the server's request log, or a workload of the
arena), the scheduler plays it in the simulator with each one's lengths, request by request: on
the served model's engine profile, with the server's policy, class weights and limits, and the
requests' `max_tokens`. The challenger is promoted when

1. the 95 % interval of the paired attainment difference does not lie below zero, and
2. its 80 % intervals hold their share of the answers (`judged_side`), or no worse than the
   champion's.

What was compared and decided is a run in MLflow, tags on the version, and the alias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import as_request, largest_group, newest_requests
from lengthwise.data.workload import WorkloadRequest
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.training.bench.comparison.arms import Arm
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.comparison.workload_source import WorkloadSource, capacity_rps
from lengthwise.training.bench.judged_side import Side, objections, side_of
from lengthwise.training.bench.results.records import RequestRecord, paired_difference
from lengthwise.training.bench.runners.simulator_runner import SimulatorRunner
from lengthwise.training.bench.served import Server
from lengthwise.training.registry.model_names import CHALLENGER, CHAMPION
from lengthwise.training.registry.models import ResolvedPredictor
from lengthwise.training.registry.promotions import log_promotion, make_champion
from lengthwise.training.workspace import Workspace

if TYPE_CHECKING:
    from lengthwise.predictor.model import LengthPredictor

LEAST_REQUESTS, MOST_REQUESTS = 100, 2000  # to judge by


@dataclass(frozen=True, slots=True)
class Traffic:
    """Requests to replay, with what a predictor may read of each: text, or logged features.

    `features` (n, f) belong to the requests of the source's list, in their order; `left_out` says
    of the requests that were not taken what they lack.
    """

    source: WorkloadSource
    features: np.ndarray | None = None
    feature_contract: str | None = None
    left_out: tuple[str, ...] = ()

    def predict(
        self, predictor: LengthPredictor, requests: Sequence[WorkloadRequest], label: str
    ) -> LengthDistribution:
        """The predictor's word on the traffic's requests, none above its request's limit.

        InputError if it cannot read them.
        """
        classes = [r.slo.slo_class for r in requests]
        limits = None
        if any(r.max_tokens is not None for r in requests):
            limits = [np.inf if r.max_tokens is None else r.max_tokens for r in requests]
        if self.features is None:
            return predictor.predict(
                [r.prompt for r in requests],
                classes,
                [r.readable_tokens for r in requests],
                limits,
            )
        if predictor.feature_contract != self.feature_contract:
            raise InputError(
                f"{self.source.name} holds no text, only features {self.feature_contract}; {label} "
                f"reads {predictor.feature_contract}: log prompts, or judge by --workload"
            )
        return predictor.predict_features(self.features[: len(requests)], classes, limits)


@dataclass(frozen=True, slots=True)
class PromotionDecision:
    """The comparison and what follows from it."""

    champion: Side
    challenger: Side
    difference: float
    difference_ci95: tuple[float, float]
    traffic: str
    requests: int
    load: float | None
    profile: str
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
            "profile": self.profile,
            "attainment_difference": self.difference,
            "difference_ci95": list(self.difference_ci95),
            **{
                name: {
                    "predictor": side.label,
                    "attainment": side.attainment,
                    "coverage": side.coverage,
                    "coverage_due": side.coverage_due,
                    "mae": side.mae,
                }
                for name, side in (("champion", self.champion), ("challenger", self.challenger))
            },
        }


def logged_traffic(folder: Path, most: int) -> Traffic:
    """The last `most` finished requests of a log, at the times they arrived.

    Those with text, or where too few have it those with features of one contract; the others are
    counted (`Traffic.left_out`). The log is read from its new end.
    """
    frame = newest_requests(folder, most)
    from lengthwise.predictor.fitting.fit import logged_features

    group = largest_group(frame, str(folder))
    frame = frame[group.rows]
    features = None if group.contract is None else logged_features(frame)
    if len(frame) < LEAST_REQUESTS:
        raise InputError(
            f"{folder} has {len(frame)} finished requests to replay, at least {LEAST_REQUESTS} "
            "are needed"
        )
    first_s = float(frame["arrival_unix_s"].min())
    requests = tuple(
        replace(
            as_request(row),
            arrival_s=row["arrival_unix_s"] - first_s,
            prompt=row["prompt"] if features is None else None,
        )
        for row in frame.astype(object).where(frame.notna(), None).to_dict("records")
    )
    name = f"log:{folder.name}"
    source = WorkloadSource(name, name, requests=requests)
    left_out = tuple(f"{part['rows']} {part['reason']}" for part in group.left_out)
    return Traffic(source, features, group.contract, left_out)


def judge(
    champion: ResolvedPredictor,
    challenger: ResolvedPredictor,
    traffic: Traffic,
    server: Server,
    *,
    load: float | None = None,
    requests: int | None = None,
    seeds: int | None = None,
) -> PromotionDecision:
    """Play the traffic with both versions' lengths, as the server would, and decide.

    Attainment counts a request by the weight of its class, which is what the planner goes by.
    `load` in multiples of the capacity, None for the traffic's own pace; of a named workload
    `requests` are drawn `seeds` times.
    """
    from lengthwise.predictor.model import LengthPredictor

    versions = {CHAMPION: champion, CHALLENGER: challenger}
    predictors = {name: LengthPredictor.load(v.directory) for name, v in versions.items()}
    said: dict[str, list[LengthDistribution]] = {name: [] for name in versions}

    def lengths(arm: Arm, requests: Sequence[WorkloadRequest]) -> tuple[np.ndarray, np.ndarray]:
        found = traffic.predict(predictors[arm.label], requests, versions[arm.label].label)
        said[arm.label].append(found)
        return found.quantiles, found.levels

    arms = tuple(Arm(server.policy, "learned", name, server.policy_params) for name in versions)
    capacity = None if load is None else capacity_rps(traffic.source, server.profile)
    outcome = compare(
        traffic.source,
        BenchSettings(arms, load=load, requests=requests, repeats=seeds),
        SimulatorRunner(server.profile, lengths, max_wait_s=server.max_wait_s, weights=server.slos),
        capacity_rps=capacity,
    )

    def weight(record: RequestRecord) -> float:
        return server.slos.weight(record.slo_class)

    sides = {
        name: side_of(versions[name].label, outcome.records[name], said[name], weight)
        for name in versions
    }
    paired = paired_difference(
        outcome.records[CHALLENGER], outcome.records[CHAMPION], weight=weight
    )
    low, high = paired["difference_ci95"]
    return PromotionDecision(
        champion=sides[CHAMPION],
        challenger=sides[CHALLENGER],
        difference=float(paired["attainment_difference"]),
        difference_ci95=(float(low), float(high)),
        traffic=traffic.source.name,
        requests=len(outcome.records[CHAMPION]),
        load=load,
        profile=server.profile.name,
        reasons=tuple(objections(sides[CHAMPION], sides[CHALLENGER], float(high))),
    )


def promote(
    decision: PromotionDecision,
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
