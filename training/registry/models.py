"""The versions of the registered model ``output-length``: made, named, found and fetched."""

from __future__ import annotations

import contextlib
import io
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote, urlsplit

from lengthwise.training.registry.card import native_directory
from lengthwise.training.registry.connection import connect
from lengthwise.training.registry.model_names import (
    CHALLENGER,
    CHAMPION,
    DEFAULT_PREDICTOR,
    MODEL_ID_TAG,
    MODEL_NAME,
    check_alias,
)
from lengthwise.training.registry.store import RegistryError
from lengthwise.training.registry.training_runs import log_directory
from lengthwise.training.workspace import Workspace


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


def register(
    model: str | Path, *, alias: str | None = None, workspace: Workspace
) -> RegisteredVersion:
    """Make a version of ``output-length`` from a model URI or a predictor directory.

    The first version becomes ``champion``, later ones ``challenger``, unless ``alias`` is given.
    A model that has a version already is not registered twice: only the alias moves.
    """
    if alias is not None:
        check_alias(alias)
    directory = native_directory(Path(model))
    if directory is not None:
        model = log_directory(directory, workspace).model_uri
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
