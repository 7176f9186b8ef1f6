"""The wheel, installed where nothing else of ours is, and the set-up on a stranger's machine."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
import zipfile
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
OURS = ("data", "predictor", "scheduler", "training")
SOURCES = ("src", *OURS, "pyproject.toml", "README.md", "LICENSE")


def run(*command, **options):
    """Run to the end; what it printed, or an AssertionError with what it complained of."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, as a build leaves its traces beside the sources."""
    copy = tmp_path_factory.mktemp("copy")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, copy)
    return next(out.glob("*.whl"))


class Installed:
    """A fresh environment with the wheel in it, and a folder of somebody else's to work in."""

    def __init__(self, venv, folder):
        self.python = venv / "bin" / "python"
        self.command = venv / "bin" / "lengthwise"
        self.folder = folder
        ours = ("PYTHONPATH", "LENGTHWISE_HOME", "MLFLOW_TRACKING_URI")
        self.env = {name: value for name, value in os.environ.items() if name not in ours}

    def run(self, *arguments, program=None):
        return run(program or self.python, *arguments, cwd=self.folder, env=self.env)

    @contextlib.contextmanager
    def server(self, *command, **env):
        """The command in the folder, until its server is ready; yields the server's address."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        log = self.folder / f"server-{port}.log"
        small = ("--enforce-eager", "--max-num-seqs", "8", "--max-model-len", "1024")
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*command, *small, "--port", str(port)],
                cwd=self.folder, env=self.env | env, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            until = time.monotonic() + 480
            while not healthy(url):
                assert process.poll() is None, log.read_text(errors="replace")[-3000:]
                assert time.monotonic() < until, log.read_text(errors="replace")[-3000:]
                time.sleep(0.5)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def healthy(url):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/health", timeout=5).status_code == 200
    return False


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Everything but lengthwise is shared with the environment that runs the tests."""
    venv = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    site = venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    (site / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", venv)
    run(*pip, "install", "-q", "--no-deps", "--no-index", wheel)
    folder = tmp_path_factory.mktemp("stranger")
    for name in ("data", "training", "scheduler"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('somebody else\\'s')\n")
    return Installed(venv, folder)


# -- the wheel --------------------------------------------------------------------------------


def test_the_wheel_holds_one_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"lengthwise"}
    assert {"lengthwise/__init__.py", "lengthwise/__main__.py", "lengthwise/py.typed"} <= set(names)
    for package in OURS:
        modules = {
            f"lengthwise/{path.relative_to(ROOT)}" for path in (ROOT / package).rglob("*.py")
        }
        assert modules <= set(names)
    assert {
        f"lengthwise/{path.relative_to(ROOT)}"
        for pattern in ("scheduler/profiles/*.json", "training/bench/results/*.html")
        for path in ROOT.glob(pattern)
    } <= set(names)
    assert not [name for name in names if "test" in name.split("/")[-1]]


def test_nothing_is_installed_under_a_bare_name(installed, tmp_path):
    for name in OURS:
        done = subprocess.run(
            [installed.python, "-c", f"import {name}"],
            capture_output=True, text=True, cwd=tmp_path, env=installed.env, check=False,
        )  # fmt: skip
        assert f"No module named '{name}'" in done.stderr


def test_the_front_door_opens_beside_packages_of_the_same_names(installed):
    code = (
        "import lengthwise; from lengthwise import *; print(lengthwise.__file__)\n"
        "print(Scheduler.__name__, Middleware.__name__, LengthPredictor.__name__,\n"
        "      fit_predictor.__name__, __version__)"
    )
    file, names = installed.run("-c", code).splitlines()[-2:]
    assert Path(file).is_relative_to(installed.python.parents[1])
    assert names.split()[:4] == [
        "LengthwiseScheduler", "LengthwiseMiddleware", "LengthPredictor", "fit_predictor",
    ]  # fmt: skip


def test_the_command_and_the_module_are_one(installed):
    shown = installed.run("-m", "lengthwise", "--help")
    assert "serve" in shown
    assert shown == installed.run("--help", program=installed.command)
    assert installed.run("-m", "lengthwise", "--version").startswith("lengthwise ")


# -- the real server, from the folder of somebody else ------------------------------------------

TRAIN = """
from lengthwise import fit_predictor
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.scheduler.vllm_adapter.server.tiny import build_tiny_model
parts = split_table(synthetic_table(300, seed=3))
blocks = ("structure", "request")
fit_predictor(parts["train"], parts["calibration"], blocks=blocks, n_estimators=10).save("lengths")
build_tiny_model("tiny-model")
"""


@pytest.fixture(scope="module")
def trained(installed):
    """A predictor and the tiny model in the folder."""
    installed.run("-c", TRAIN)
    return installed


def assert_it_answers(url, model):
    """An answer to a request with an SLO, which the scheduler saw and judged."""
    body = {
        "model": model, "max_tokens": 5, "ignore_eos": True, "temperature": 0,
        "messages": [{"role": "user", "content": "Name three rivers."}],
        "vllm_xargs": {"slo_ttft_ms": 300_000},
    }  # fmt: skip
    with httpx.Client(base_url=url, timeout=120) as client:
        answer = client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["usage"]["completion_tokens"] == 5
        impossible = body | {"vllm_xargs": {"slo_ttft_ms": "soon"}}
        refused = client.post("/v1/chat/completions", json=impossible)
        assert refused.status_code == 400, refused.text
        status = client.get("/lengthwise/status").json()
    assert status["policy"] == "sa"
    assert status["outcomes"]["default"]["met"] == 1, status["outcomes"]
    return status


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_the_command_serves(trained):
    predictor = trained.folder / "lengths"
    with trained.server(trained.command, "serve", "tiny", "--predictor", predictor) as url:
        assert assert_it_answers(url, "tiny")["lengths"] == "learned"


@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_vllm_serves_with_the_two_names(trained):
    settings = {"predictor_dir": str(trained.folder / "lengths")}
    (trained.folder / "settings.json").write_text(json.dumps(settings))
    with trained.server(
        trained.python, "-m", "vllm.entrypoints.openai.api_server", "--model", "tiny-model",
        "--load-format", "dummy", "--dtype", "float32", "--served-model-name", "tiny",
        "--scheduler-cls", "lengthwise.Scheduler", "--middleware", "lengthwise.Middleware",
        LENGTHWISE_SERVER_CONFIG="settings.json", VLLM_CPU_KVCACHE_SPACE="1",
    ) as url:  # fmt: skip
        assert assert_it_answers(url, "tiny")["lengths"] == "learned"
