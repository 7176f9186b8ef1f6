"""Promotions in MLflow: evidence as a run, verdict as tags, and the alias that servers follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lengthwise.training import figures
from lengthwise.training.registry.card import flatten
from lengthwise.training.registry.connection import connect, experiment_id
from lengthwise.training.registry.model_names import (
    CHALLENGER,
    CHAMPION,
    KIND_TAG,
    MODEL_ID_TAG,
    MODEL_NAME,
)
from lengthwise.training.registry.models import ResolvedPredictor
from lengthwise.training.registry.store import RegistryError
from lengthwise.training.workspace import Workspace

PREVIOUS = "previous"


def log_promotion(
    decision: Mapping[str, Any], challenger: ResolvedPredictor, *, workspace: Workspace
) -> str:
    """The comparison as a run with table and plot, and its verdict as tags; returns the run id.

    ``decision`` is `PromotionDecision.to_json`, with ``promoted`` and ``forced``.
    """
    verdict = "promoted" if decision["promoted"] else "refused"
    if decision["forced"]:
        verdict += " by force"
    why = "; ".join(decision["reasons"]) or "no worse in attainment, calibrated"
    tags = {KIND_TAG: "promotion", "verdict": verdict, "traffic": str(decision["traffic"])}
    if challenger.model_id:
        tags[MODEL_ID_TAG] = challenger.model_id
    sides = {name: decision[name] for name in ("champion", "challenger")}
    with connect(workspace, writing=True) as mlflow:
        experiment = experiment_id(mlflow, workspace)
        name = f"promotion of {challenger.label}"
        with mlflow.start_run(experiment_id=experiment, run_name=name, tags=tags) as run:
            mlflow.log_dict(dict(decision), "decision.json")
            mlflow.log_metrics(flatten(decision))
            columns = ("predictor", "attainment", "coverage", "mae")
            table = {key: [side[key] for side in sides.values()] for key in columns}
            mlflow.log_table({"side": list(sides), **table}, "comparison.json")
            figure = figures.promotion(
                {side["predictor"]: side["attainment"] for side in sides.values()},
                decision["attainment_difference"],
                decision["difference_ci95"],
                note=f"{decision['traffic']}, {decision['requests']} requests",
            )
            mlflow.log_figure(figure, "plots/attainment.png")
        if challenger.version:
            client = mlflow.MlflowClient()
            version = str(challenger.version)
            client.set_model_version_tag(MODEL_NAME, version, "promotion", f"{verdict}: {why}")
            client.set_model_version_tag(MODEL_NAME, version, "promotion_run", run.info.run_id)
        return str(run.info.run_id)


def make_champion(challenger: ResolvedPredictor, *, workspace: Workspace) -> None:
    """Move the alias; the champion until now is `previous`, and the challenger's alias goes."""
    if challenger.version is None:
        raise RegistryError(f"{challenger.label} is not a version: `lengthwise register` it first")
    with connect(workspace, writing=True) as mlflow:
        client = mlflow.MlflowClient()
        aliases = _aliases(client)
        if (before := aliases.get(CHAMPION)) and before != str(challenger.version):
            client.set_registered_model_alias(MODEL_NAME, PREVIOUS, before)
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, str(challenger.version))
        if aliases.get(CHALLENGER) == str(challenger.version):
            client.delete_registered_model_alias(MODEL_NAME, CHALLENGER)


def roll_back(*, workspace: Workspace) -> tuple[str, str]:
    """Champion and previous change places; returns their versions after it, champion first."""
    with connect(workspace, writing=False) as mlflow:  # a store that is not there is told, not made
        aliases = _aliases(mlflow.MlflowClient())
    if PREVIOUS not in aliases or CHAMPION not in aliases:
        raise RegistryError("nothing to roll back to: no promotion has taken place")
    with connect(workspace, writing=True) as mlflow:
        client = mlflow.MlflowClient()
        champion, previous = aliases[PREVIOUS], aliases[CHAMPION]
        client.set_registered_model_alias(MODEL_NAME, CHAMPION, champion)
        client.set_registered_model_alias(MODEL_NAME, PREVIOUS, previous)
        client.set_model_version_tag(MODEL_NAME, previous, "promotion", "rolled back")
        return champion, previous


def _aliases(client: Any) -> dict[str, str]:
    """Alias to version number, as text."""
    model = client.get_registered_model(MODEL_NAME)
    return {alias: str(version) for alias, version in model.aliases.items()}
