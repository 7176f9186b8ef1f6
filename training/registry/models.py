"""MLflow: training runs and the versions of the registered model ``output-length``.

The only module that talks to MLflow (``pyfunc_model`` is what MLflow itself loads). Every
function takes the workspace whose store it uses, checks that the store answers before MLflow
is imported, and raises RegistryError, one line, for whatever MLflow then refuses.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

import lengthwise
from lengthwise.training.registry.card import (
    estimator_name,
    flatten,
    headline,
    native_directory,
    read_card,
)
from lengthwise.training.registry.model_names import (
    CHALLENGER,
    CHAMPION,
    DEFAULT_PREDICTOR,
    MODEL_NAME,
)
from lengthwise.training.registry.store import (
    URI_VARIABLE,
    RegistryError,
    check_store,
    make_folder,
    setup_lock,
    tracking_uri,
)
from lengthwise.training.registry.uri import UNSHOWN, display, scrubbed, sqlite_file
from lengthwise.training.workspace import Workspace

EXPERIMENT = "lengthwise"

KIND_TAG = "lengthwise.kind"
MODEL_ID_TAG = "lengthwise.model_id"

_QUIET = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow and alembic narrate every migration of a new database
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    # MLflow asks git for the commit of the calling script; there may be no git
    "GIT_PYTHON_REFRESH": "quiet",
}
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


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version in the registry."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str | None
    model_id: str

    @property
    def model_uri(self) -> str:
        """The version by number, which never moves."""
        return f"models:/{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class ResolvedPredictor:
    """A predictor on this machine: its native directory and what to call it.

    ``label`` is the version's URI (``models:/output-length/3``) where one is registered, the
    logged model's URI or the directory otherwise; ``model_id`` is None for a plain directory.
    """

    directory: Path
    label: str
    model_id: str | None = None
    version: int | None = None
    run_id: str | None = None


@contextlib.contextmanager
def connect(workspace: Workspace, *, writing: bool) -> Iterator[ModuleType]:
    """MLflow, imported late, pointed at the workspace's store, with its errors in one line."""
    uri = tracking_uri(workspace)
    if writing:
        make_folder(uri)
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("alembic").setLevel(logging.ERROR)
    # it logs a traceback of what it then raises
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    with setup_lock(uri):
        check_store(uri, writing=writing)
        mlflow = _opened(uri)
    import requests
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield mlflow
    except (MlflowException, SQLAlchemyError, requests.RequestException) as error:
        raise _told(error, uri) from error


def _opened(uri: str) -> ModuleType:
    """MLflow with its two stores opened, which makes or brings up to date their tables."""
    import mlflow

    given = os.environ.get(URI_VARIABLE)
    mlflow.set_tracking_uri(uri)
    # MLflow exports what it is told, and the next workspace would take it for the user's wish
    if given is None:
        os.environ.pop(URI_VARIABLE, None)
    if uri.lower().startswith(("http:", "https:")):
        return mlflow  # a server made its tables itself
    try:
        with contextlib.redirect_stdout(sys.stderr):
            client = mlflow.MlflowClient()
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
    except Exception as error:  # of MLflow, alembic, SQLAlchemy and its driver
        raise _told(error, uri) from error
    return mlflow


def _told(error: Exception, uri: str) -> RegistryError:
    """What MLflow said, on one line, without the password of the store."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = scrubbed(lines[0].rstrip("."), uri)
    if said is None:
        said = f"{type(error).__name__}; what it says may hold the password: --debug shows it"
    missing = getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST"
    hint = "; `lengthwise compare` lists the versions there are" if missing else ""
    shown = display(uri)
    at = shown if shown == UNSHOWN else f"at {shown}"
    return RegistryError(f"MLflow {at}: {said}{hint}")


def check_writable(workspace: Workspace) -> None:
    """Raise RegistryError unless runs can be logged to the workspace's tracking store."""
    uri = tracking_uri(workspace)
    make_folder(uri)
    with setup_lock(uri):
        check_store(uri, writing=True)


def experiment_id(mlflow: ModuleType, workspace: Workspace) -> str:
    """The id of the experiment `lengthwise`, made (or brought back from the bin) if need be."""
    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(EXPERIMENT)
    if found is not None:
        if found.lifecycle_stage != "active":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)
    # a server places artifacts itself; only the workspace's own database needs a place named
    uri = tracking_uri(workspace)
    local = sqlite_file(uri) == workspace.database
    # as a URI, for in a path MLflow would take a # or ? for the end of it
    location = workspace.artifacts.as_uri() if local else None
    with setup_lock(uri):  # another process may have come first
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is not None:
            return str(found.experiment_id)
        return str(client.create_experiment(EXPERIMENT, artifact_location=location))


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


def register(
    model: str | Path, *, alias: str | None = None, workspace: Workspace
) -> RegisteredVersion:
    """Make a version of ``output-length`` from a model URI or a predictor directory.

    The first version becomes ``champion``, later ones ``challenger``, unless ``alias`` is given.
    A model that has a version already is not registered twice: only the alias moves.
    """
    # MLflow would refuse these too, but only after the version is made
    if alias is not None and not re.fullmatch(r"(?!latest$|v\d+$)[\w-]{1,255}", alias, re.ASCII):
        raise RegistryError(
            f"alias must be letters, digits, _ or -, and neither 'latest' nor 'v1', got {alias!r}"
        )
    directory = native_directory(Path(model))
    if directory is not None:
        model = _log_directory(directory, workspace).model_uri
    elif not _is_uri(str(model)):
        raise _not_a_predictor(str(model))
    with connect(workspace, writing=True) as mlflow:
        client = mlflow.MlflowClient()
        model_id, version = _lookup(client, str(model))
        if version is None:
            first = not client.search_model_versions(f"name = '{MODEL_NAME}'")
            tags = client.get_logged_model(model_id).tags
            own = {key: value for key, value in tags.items() if not key.startswith("mlflow.")}
            with contextlib.redirect_stderr(io.StringIO()):
                version = mlflow.register_model(
                    f"models:/{model_id}", MODEL_NAME, tags={MODEL_ID_TAG: model_id, **own}
                )
            alias = alias or (CHAMPION if first else CHALLENGER)
        if alias:
            client.set_registered_model_alias(version.name, alias, version.version)
        version = client.get_model_version(version.name, version.version)
        return RegisteredVersion(
            version.name, int(version.version), tuple(version.aliases), version.run_id, model_id
        )


def _log_directory(directory: Path, workspace: Workspace) -> LoggedTraining:
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


def version_aliases(workspace: Workspace) -> dict[str, int]:
    """The aliases of ``output-length`` and the version numbers they stand for."""
    with connect(workspace, writing=False) as mlflow:
        model = mlflow.MlflowClient().get_registered_model(MODEL_NAME)
        return {alias: int(version) for alias, version in model.aliases.items()}


def resolve_predictor(
    model: str | Path = DEFAULT_PREDICTOR, *, workspace: Workspace
) -> ResolvedPredictor:
    """Bring a predictor named by URI or directory to this machine.

    Accepts ``models:/output-length@champion``, ``models:/output-length/3``, ``models:/m-...``,
    ``m-...``, ``runs:/RUN_ID`` and a directory, which needs no tracking store.
    """
    directory = native_directory(Path(model))
    if directory is not None:
        return ResolvedPredictor(directory.absolute(), str(model))
    if not _is_uri(str(model)):
        raise _not_a_predictor(str(model))
    with connect(workspace, writing=False) as mlflow:
        client = mlflow.MlflowClient()
        model_id, version = _lookup(client, str(model))
        logged = client.get_logged_model(model_id)
        label = f"models:/{version.name}/{version.version}" if version else f"models:/{model_id}"
        fetched = _fetch(mlflow, logged, workspace)
        directory = native_directory(fetched)
        if directory is None:
            raise RegistryError(f"{label} has no predictor (no card.json) at {fetched}")
        return ResolvedPredictor(
            directory,
            label,
            model_id=model_id,
            version=int(version.version) if version and version.name == MODEL_NAME else None,
            run_id=logged.source_run_id,
        )


def _fetch(mlflow: ModuleType, logged: Any, workspace: Workspace) -> Path:
    """The logged model's files: in place where they are local, else downloaded once."""
    location = urlsplit(logged.artifact_location)
    if location.scheme in ("", "file"):
        path = Path(unquote(location.path) if location.scheme else logged.artifact_location)
        # a workspace that was moved still has them under its own artifact root
        moved = workspace.artifacts / "models" / logged.model_id / "artifacts"
        return moved if moved.is_dir() and not path.is_dir() else path
    cached = workspace.cache / "predictors" / logged.model_id
    if not cached.is_dir():
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as partial:
            fetched = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{logged.model_id}", dst_path=partial
            )
            Path(fetched).rename(cached)
    return cached


def _is_uri(text: str) -> bool:
    return re.match(r"(models:/|runs:/|m-[0-9a-f]{32}$)", text) is not None


def _not_a_predictor(text: str) -> RegistryError:
    what = "holds no card.json" if Path(text).is_dir() else "is neither a directory nor a model URI"
    return RegistryError(
        f"predictor {text!r} {what}; give a predictor directory, models:/{MODEL_NAME}@{CHAMPION}, "
        f"models:/{MODEL_NAME}/N, models:/m-... or runs:/RUN_ID"
    )


def _lookup(client: Any, uri: str) -> tuple[str, Any | None]:
    """The logged model behind a URI and its registered version, if it has one."""
    if uri.startswith("runs:/"):
        run = client.get_run(uri.removeprefix("runs:/").split("/")[0])
        outputs = run.outputs.model_outputs if run.outputs else []
        if not outputs:
            raise RegistryError(f"{uri} logged no model")
        return _with_version(client, outputs[-1].model_id)
    name = uri.removeprefix("models:/")
    if re.fullmatch(r"m-[0-9a-f]{32}", name):
        return _with_version(client, name)
    if match := re.fullmatch(r"([^/@]+)@([^/@]+)", name):
        version = client.get_model_version_by_alias(*match.groups())
    elif match := re.fullmatch(r"([^/@]+)/(\d+)", name):
        version = client.get_model_version(*match.groups())
    else:
        raise RegistryError(f"{uri!r} names no model; write models:/NAME/N, models:/NAME@ALIAS")
    model_id = version.tags.get(MODEL_ID_TAG) or version.source.removeprefix("models:/")
    return model_id, version


def _with_version(client: Any, model_id: str) -> tuple[str, Any | None]:
    links = json.loads(client.get_logged_model(model_id).tags.get("mlflow.modelVersions", "[]"))
    if not links:
        return model_id, None
    return model_id, client.get_model_version(links[-1]["name"], str(links[-1]["version"]))
