"""The way to MLflow: its store checked, its errors in one line, its narration kept quiet.

Every function of the registry takes the workspace whose store it uses, checks that the store
answers before MLflow is imported, and raises RegistryError, one line, for whatever MLflow then
refuses.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from types import ModuleType

from lengthwise.data.errors import InputError
from lengthwise.training.registry.store import (
    URI_VARIABLE,
    RegistryError,
    check_store,
    make_folder,
    setup_lock,
    tracking_uri,
)
from lengthwise.training.registry.uri import UNSHOWN, display, scrubbed_of_all, sqlite_file
from lengthwise.training.workspace import Workspace

EXPERIMENT = "lengthwise"

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
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")
_OTHER_URIS = ("MLFLOW_REGISTRY_URI", *_PROXIES, *(name.upper() for name in _PROXIES))


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
    except InputError:
        raise
    except (MlflowException, SQLAlchemyError, requests.RequestException, ValueError) as error:
        raise _told(error, uri) from error  # a ValueError is of a URL that nothing can read


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


def _others() -> list[str]:
    """Other URIs that MLflow reads of the environment, and may speak of."""
    named = (os.environ.get(name) for name in _OTHER_URIS)
    return [uri for uri in named if uri]


def _told(error: Exception, uri: str) -> RegistryError:
    """What MLflow said, on one line, without the password of the store."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    said = scrubbed_of_all(lines[0].rstrip("."), (uri, *_others()))
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
