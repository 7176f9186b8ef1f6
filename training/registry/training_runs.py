"""A training in MLflow: its parameters, metrics, figures, and the model as anybody can load it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import lengthwise
from lengthwise.training.registry.card import estimator_name, flatten, headline, read_card
from lengthwise.training.registry.connection import connect, experiment_id
from lengthwise.training.registry.model_names import KIND_TAG, MODEL_NAME
from lengthwise.training.workspace import Workspace

_PYFUNC_REQUIREMENTS = (
    "mlflow", "lightgbm", "numba", "numpy", "pandas", "pyarrow", "scikit-learn", "scipy",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoggedTraining:
    """A finished training run and the model logged in it."""

    run_id: str
    model_id: str

    @property
    def model_uri(self) -> str:
        """The logged model, registered or not."""
        return f"models:/{self.model_id}"


def log_training_run(
    predictor_dir: Path,
    *,
    params: Mapping[str, object],
    metrics: Mapping[str, float],
    figures: Mapping[str, Any],
    tags: Mapping[str, str],
    workspace: Workspace,
    run_name: str | None = None,
) -> LoggedTraining:
    """Log one training: parameters, metrics, matplotlib figures by file name, and the model.

    ``tags`` should hold ``source_label`` and ``data_sha256``.
    """
    with connect(workspace, writing=True) as mlflow:
        experiment = experiment_id(mlflow, workspace)
        with mlflow.start_run(experiment_id=experiment, run_name=run_name) as run:
            mlflow.set_tags({KIND_TAG: "training", **tags})
            mlflow.log_params(dict(params))
            mlflow.log_artifact(str(predictor_dir / "card.json"))
            for name, figure in figures.items():
                mlflow.log_figure(figure, f"plots/{name}.png")
            model = _log_pyfunc(mlflow, predictor_dir, tags)
            # logged after the model, so that they belong to the run and to the model
            mlflow.log_metrics(dict(metrics), model_id=model.model_id)
        return LoggedTraining(run_id=run.info.run_id, model_id=model.model_id)


def _log_pyfunc(mlflow: ModuleType, predictor_dir: Path, tags: Mapping[str, str]) -> Any:
    from importlib.metadata import version

    import numpy as np
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    card = read_card(predictor_dir)
    inputs = Schema(
        [
            ColSpec("string", "prompt"),
            ColSpec("string", "slo_class", required=False),
            ColSpec("long", "prompt_tokens", required=False),
        ]
    )
    names = ["predicted_tokens", *(f"q{level:g}" for level in card["levels"])]
    outputs = Schema([ColSpec("double", name) for name in names])
    example = pd.DataFrame(
        {
            "prompt": ["Write a haiku about rain.", "Explain how B-trees stay balanced."],
            "slo_class": ["chat", "chat"],
            "prompt_tokens": np.array([8, 10], dtype=np.int64),
        }
    )
    packages = list(_PYFUNC_REQUIREMENTS)
    if "reader" in card or card.get("embedding") or card.get("causal_reader"):
        packages += ["torch", "transformers"]
    requirements = [f"{name}=={version(name)}" for name in packages]
    # MLflow loads what it saved and puts the copied package first on sys.path: put the path back
    # after, else later processes started from this one would import from a deleted copy
    path = list(sys.path)
    try:
        return mlflow.pyfunc.log_model(
            name=MODEL_NAME,
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"predictor": str(predictor_dir)},
            code_paths=list(lengthwise.__path__),
            signature=ModelSignature(inputs=inputs, outputs=outputs),
            input_example=example,
            pip_requirements=requirements,
            tags=dict(tags),
        )
    finally:
        sys.path = path


def log_directory(directory: Path, workspace: Workspace) -> LoggedTraining:
    """A run for a predictor trained elsewhere: what its card says, nothing else."""
    card = read_card(directory)
    tags = {key: str(card[key]) for key in ("source_label", "data_sha256") if card.get(key)}
    params: dict[str, object] = {"estimator": estimator_name(card)}
    params |= {key: card[key] for key in ("feature_contract", "tokenizer") if key in card}
    return log_training_run(
        directory,
        params=params,
        metrics=flatten(headline(card.get("metrics") or {})),
        figures={},
        tags=tags,
        workspace=workspace,
        run_name="import",
    )
