"""The predictor that comes with the package: where a registry has no version, it becomes the first.

It has learned from the answers of several models (`benchmarks/predictor/make_shipped.py`), none of
them the served one, whose answers then mend it (`predictor.serving.online_lengths`).
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from importlib.resources import as_file, files
from pathlib import Path

from lengthwise.training.registry.connection import connect
from lengthwise.training.registry.model_names import MODEL_NAME
from lengthwise.training.registry.models import RegisteredVersion, register
from lengthwise.training.workspace import Workspace

ARCHIVE = "shipped.zip"  # in the package `lengthwise.predictor`


def register_shipped(workspace: Workspace) -> RegisteredVersion | None:
    """Make it version 1 and champion; None where there is a version already.

    RegistryError where the store does not answer or cannot be written.
    """
    with connect(workspace, writing=True) as mlflow:
        if mlflow.MlflowClient().search_model_versions(f"name = '{MODEL_NAME}'"):
            return None
    folder = Path(tempfile.mkdtemp(prefix="lengthwise-shipped-"))
    try:
        return register(unpack(folder), workspace=workspace)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unpack(folder: Path) -> Path:
    """The predictor's directory, written under this folder."""
    with as_file(files("lengthwise.predictor") / ARCHIVE) as path, zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return folder
