import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lengthwise.data.errors import InputError
from lengthwise.training.registry.connection import connect
from lengthwise.training.registry.model_names import DEFAULT_PREDICTOR
from lengthwise.training.registry.models import register, resolve_predictor
from lengthwise.training.registry.store import RegistryError
from lengthwise.training.workspace import Workspace


def test_the_first_version_is_champion_and_later_ones_challenge(workspace, predictor_dir):
    first = register(predictor_dir, workspace=workspace)
    second = register(predictor_dir, workspace=workspace)
    third = register(predictor_dir, alias="shadow", workspace=workspace)
    assert [v.version for v in (first, second, third)] == [1, 2, 3]
    assert first.aliases == ("champion",)
    assert second.aliases == ("challenger",)
    assert third.aliases == ("shadow",)
    assert resolve_predictor(workspace=workspace).label == "models:/output-length/1"


def test_registering_a_version_again_only_moves_the_alias(workspace, predictor_dir):
    first = register(predictor_dir, workspace=workspace)
    second = register(predictor_dir, workspace=workspace)
    moved = register(second.model_uri, alias="champion", workspace=workspace)
    assert moved.version == second.version
    assert resolve_predictor(DEFAULT_PREDICTOR, workspace=workspace).version == 2
    again = register(f"models:/{first.model_id}", workspace=workspace)
    assert again.version == 1
    assert again.aliases == ()


def test_every_way_to_name_a_model_finds_the_same_files(workspace, predictor_dir):
    version = register(predictor_dir, workspace=workspace)
    card = (predictor_dir / "card.json").read_bytes()
    names = [
        DEFAULT_PREDICTOR,
        version.model_uri,
        f"models:/{version.model_id}",
        version.model_id,
        f"runs:/{version.run_id}",
    ]
    found = [resolve_predictor(name, workspace=workspace) for name in names]
    assert len(set(found)) == 1
    assert found[0].directory.is_relative_to(workspace.artifacts)
    assert (found[0].directory / "card.json").read_bytes() == card
    assert (found[0].label, found[0].version) == ("models:/output-length/1", 1)
    assert resolve_predictor(found[0].directory, workspace=workspace).model_id is None


def test_a_moved_workspace_keeps_its_models(workspace, predictor_dir, tmp_path):
    register(predictor_dir, workspace=workspace)
    moved = type(workspace)(tmp_path / "elsewhere")
    shutil.move(workspace.root, moved.root)
    found = resolve_predictor(workspace=moved)
    assert found.directory.is_relative_to(moved.root)
    assert (found.directory / "card.json").is_file()


def test_the_version_carries_data_and_schema(workspace, predictor_dir):
    version = register(predictor_dir, workspace=workspace)
    card = json.loads((predictor_dir / "card.json").read_text())
    with connect(workspace, writing=False) as mlflow:
        client = mlflow.MlflowClient()
        tags = client.get_model_version("output-length", "1").tags
        assert tags["source_label"] == "synthetic"
        assert tags["data_sha256"] == card["data_sha256"]
        info = mlflow.models.get_model_info(version.model_uri)
        assert info.signature.inputs.input_names() == ["prompt", "slo_class", "prompt_tokens"]
        assert info.signature.outputs.input_names()[:2] == ["predicted_tokens", "q0.05"]
        assert info.saved_input_example_info is not None
        run = client.get_run(version.run_id)
        assert run.data.params["estimator"] == card["estimator"]["name"]


ANYWHERE = """
import os, sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
sys.path = [p for p in sys.path if p and not os.path.isdir(os.path.join(p, "lengthwise"))]
import mlflow, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/output-length@champion")
out = model.predict(pandas.DataFrame({"prompt": ["Write a haiku.", "Sort a list in Python."]}))
import lengthwise.predictor
assert "artifacts" in lengthwise.predictor.__file__, lengthwise.predictor.__file__
print(out.to_json(orient="split"))
"""


def test_the_pyfunc_runs_where_lengthwise_is_not_installed(workspace, predictor_dir, tmp_path):
    from lengthwise.predictor.model import LengthPredictor

    register(predictor_dir, workspace=workspace)
    script = tmp_path / "anywhere.py"
    script.write_text(ANYWHERE)
    done = subprocess.run(
        [sys.executable, str(script), f"sqlite:///{workspace.database}"],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env=os.environ | {"NUMBA_DISABLE_JIT": "1"},  # compiling for two rows takes longer
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout.splitlines()[-1])
    prompts = ["Write a haiku.", "Sort a list in Python."]
    native = LengthPredictor.load(predictor_dir).predict(prompts)
    assert table["columns"][0] == "predicted_tokens"
    assert [row[0] for row in table["data"]] == pytest.approx(native.median().tolist(), rel=1e-6)
    assert [row[1:] for row in table["data"]] == [
        pytest.approx(q, rel=1e-6) for q in native.quantiles.tolist()
    ]


def test_logging_leaves_the_import_path_alone(workspace, predictor_dir):
    before = list(sys.path)
    register(predictor_dir, workspace=workspace)
    assert sys.path == before


def test_an_unknown_model_is_one_line(workspace, predictor_dir):
    register(predictor_dir, workspace=workspace)
    for name, message in {
        "models:/output-length@nobody": "alias nobody",
        "models:/output-length/7": "version=7",
        "models:/another/1": "another",
        "models:/output-length": "names no model",
        "models:/m-" + "0" * 32: "not found",
        "runs:/" + "0" * 32: "not found",
        "no/such/place": "neither a directory nor a model URI",
    }.items():
        with pytest.raises(RegistryError, match=message) as caught:
            resolve_predictor(name, workspace=workspace)
        assert "\n" not in str(caught.value)


def test_a_directory_without_card_is_no_predictor(workspace, tmp_path):
    with pytest.raises(RegistryError, match=r"holds no card\.json"):
        register(tmp_path, workspace=workspace)


def test_a_corrupt_card_is_told(workspace, tmp_path):
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(RegistryError, match=r"card\.json: not JSON"):
        register(tmp_path, workspace=workspace)


@pytest.mark.parametrize("alias", ["latest", "v3", "a b", ""])
def test_an_alias_mlflow_would_refuse_registers_nothing(workspace, predictor_dir, alias):
    with pytest.raises(InputError, match="alias"):
        register(predictor_dir, alias=alias, workspace=workspace)
    with connect(workspace, writing=False) as mlflow:
        assert not mlflow.MlflowClient().search_registered_models()


def test_lost_artifacts_are_told(workspace, predictor_dir):
    register(predictor_dir, workspace=workspace)
    shutil.rmtree(workspace.artifacts)
    with pytest.raises(RegistryError, match="has no predictor"):
        resolve_predictor(workspace=workspace)


class Broken(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(500)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args):
        """Quiet."""


def test_a_server_that_only_fails_is_told(workspace, monkeypatch):
    with HTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        uri = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        with pytest.raises(RegistryError, match=uri):
            resolve_predictor(workspace=workspace)
        server.shutdown()


FIRST_USE = """
import sys
from lengthwise.training.registry import connection
from lengthwise.training.workspace import Workspace
workspace = Workspace.current()
connection.check_writable(workspace)
with connection.connect(workspace, writing=True) as mlflow:
    print(connection.experiment_id(mlflow, workspace))
"""


def test_two_processes_may_be_the_first_in_a_new_store(tmp_path):
    home = tmp_path / "new # home"
    env = {**os.environ, "LENGTHWISE_HOME": str(home)}
    env.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", FIRST_USE]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=env, **pipes) for _ in range(2)]
    said = [process.communicate(timeout=500) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0]
    assert (home / "mlruns" / "mlflow.db").is_file()


@pytest.mark.parametrize("name", ["a#b", "a?b c", "100%20"])
def test_a_registry_under_any_name(tmp_path, empty_store, predictor_dir, name, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    home = Workspace(tmp_path / name)
    home.mlruns.mkdir(parents=True)
    shutil.copy(empty_store, home.database)
    version = register(predictor_dir, workspace=home)
    found = resolve_predictor(version.model_uri, workspace=home)
    assert found.directory.is_relative_to(home.artifacts)
    assert (found.directory / "card.json").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]  # and nothing of a quoted name
