"""What a predictor version is worth: SLO attainment of the benches that used it, kept in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.training.registry.card import flatten
from lengthwise.training.registry.connection import EXPERIMENT, connect, experiment_id
from lengthwise.training.registry.model_names import KIND_TAG, MODEL_ID_TAG, MODEL_NAME
from lengthwise.training.registry.models import ResolvedPredictor
from lengthwise.training.workspace import Workspace

VERSION_TAG = "lengthwise.version"


@dataclass(frozen=True, slots=True)
class Attainment:
    """SLO attainment of one arm of one bench run that used a version."""

    run_id: str
    workload: str
    load: str
    provenance: str
    arm: str
    attainment: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of the predictor: metrics of its training, attainment of its benches."""

    version: int
    aliases: tuple[str, ...]
    created_unix_s: float
    source_label: str
    metrics: Mapping[str, float]
    attainment: tuple[Attainment, ...]


def log_bench(
    result: Mapping[str, Any],
    *,
    predictor: ResolvedPredictor | None,
    files: Sequence[Path] = (),
    workspace: Workspace,
) -> str:
    """Log a bench or simulation (the design's result document) and return its run id.

    The run gets every number of every arm as ``<metric>/<arm>``, and ``files`` (report, records).
    If a logged predictor was used, its model also gets each arm's
    ``slo_attainment.<workload>.<load>/<arm>``, and its version a tag
    ``slo_attainment.<workload>.<load>``, so that the version's page in MLflow shows them.
    """
    load = "file" if result.get("load") is None else f"{result['load']:g}"
    key = f"slo_attainment.{result['workload']}.{load}"
    tags = {
        KIND_TAG: "bench",
        "workload": str(result["workload"]),
        "load": load,
        "provenance": str(result["provenance"]),
        "predictor": str(result.get("predictor")),
        "source_label": str(result.get("source_label", "unknown")),
    }
    if predictor and predictor.version:
        tags[VERSION_TAG] = str(predictor.version)
    if predictor and predictor.model_id:
        tags[MODEL_ID_TAG] = predictor.model_id
    arms = {arm_label(arm): arm for arm in result["arms"]}
    attained = {
        name: float(arm["attainment"])
        for name, arm in arms.items()
        if arm["attainment"] is not None
    }
    with connect(workspace, writing=True) as mlflow:
        name = f"{tags['provenance']} {tags['workload']} x{load}"
        experiment = experiment_id(mlflow, workspace)
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags) as run:
            mlflow.log_dict(dict(result), "result.json")
            for file in files:
                mlflow.log_artifact(str(file))
            for arm, values in arms.items():
                mlflow.log_metrics({f"{k}/{arm}": v for k, v in _numbers(values).items()})
            if predictor and predictor.model_id:
                mlflow.log_metrics(
                    {f"{key}/{arm}": value for arm, value in attained.items()},
                    model_id=predictor.model_id,
                )
        if predictor and predictor.version:
            summary = ", ".join(f"{arm} {value:.3f}" for arm, value in attained.items())
            mlflow.MlflowClient().set_model_version_tag(
                MODEL_NAME, str(predictor.version), key, f"{summary} ({tags['provenance']})"
            )
        return str(run.info.run_id)


def arm_label(arm: Mapping[str, Any]) -> str:
    """``sa:learned``; stock vLLM, which has no lengths, is ``stock``; behind its router, if any."""
    kind = "stock" if arm["policy"] == "stock" else f"{arm['policy']}:{arm['lengths']}"
    return kind if arm.get("router") is None else f"{arm['router']}/{kind}"


def _numbers(arm: Mapping[str, Any]) -> dict[str, float]:
    interval = arm.get("attainment_ci95")
    low, high = interval if interval else (None, None)
    plain = {key: value for key, value in arm.items() if key != "per_class"}
    return flatten({**plain, "attainment_low": low, "attainment_high": high})


def versions_table(*, workspace: Workspace) -> list[VersionRow]:
    """Every version of ``output-length``, oldest first, with its metrics and its benches."""
    with connect(workspace, writing=False) as mlflow:
        client = mlflow.MlflowClient()
        versions = client.search_model_versions(f"name = '{MODEL_NAME}'")
        experiment = client.get_experiment_by_name(EXPERIMENT)
        benches = _bench_runs(client, experiment.experiment_id) if experiment else {}
        rows = []
        for version in sorted(versions, key=lambda v: int(v.version)):
            full = client.get_model_version(
                MODEL_NAME, version.version
            )  # search leaves aliases out
            run = client.get_run(full.run_id) if full.run_id else None
            rows.append(
                VersionRow(
                    version=int(full.version),
                    aliases=tuple(sorted(full.aliases)),
                    created_unix_s=full.creation_timestamp / 1000,
                    source_label=full.tags.get("source_label", "unknown"),
                    metrics=dict(run.data.metrics) if run else {},
                    attainment=tuple(benches.get(str(full.version), ())),
                )
            )
        return rows


def _bench_runs(client: Any, experiment_id: str) -> dict[str, list[Attainment]]:
    """Attainment of every arm of every bench run, by the version it used; newest run first."""
    found: dict[str, list[Attainment]] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`{KIND_TAG}` = 'bench' and attributes.status = 'FINISHED'",
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        for run in page:
            tags, metrics = run.data.tags, run.data.metrics
            if VERSION_TAG not in tags:
                continue
            for key, value in sorted(metrics.items()):
                if not key.startswith("attainment/"):
                    continue
                arm = key.removeprefix("attainment/")
                found.setdefault(tags[VERSION_TAG], []).append(
                    Attainment(
                        run_id=run.info.run_id,
                        workload=tags["workload"],
                        load=tags["load"],
                        provenance=tags["provenance"],
                        arm=arm,
                        attainment=value,
                        low=metrics.get(f"attainment_low/{arm}"),
                        high=metrics.get(f"attainment_high/{arm}"),
                    )
                )
        token = page.token
        if not token:
            return found
