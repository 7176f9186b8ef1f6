"""Who imports whom: pure modules are imported in a process where the forbidden ones are blocked."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ENGINE = {"vllm", "torch", "transformers"}
LEARNING = {"sklearn", "lightgbm", "crepes", "scipy"}
OURS = ("data", "predictor", "scheduler", "training")


def ours_but(*kept):
    return {f"lengthwise.{package}" for package in OURS if package not in kept}


WALLS = {
    # package: (forbidden, modules left out because they may)
    "data": (ENGINE | LEARNING | {"mlflow", "matplotlib"} | ours_but("data"), ()),
    "predictor": (
        ENGINE | {"mlflow", "matplotlib"} | ours_but("data", "predictor"),
        ("lengthwise.predictor.estimators.encoder",),
    ),
    "scheduler": (
        ENGINE | LEARNING
        | {"mlflow", "matplotlib", "pandas", "pyarrow"} | ours_but("data", "scheduler"),
        ("lengthwise.scheduler.vllm_adapter",),
    ),
    "training": (ENGINE | {"mlflow"}, ("lengthwise.training.registry.pyfunc_model",)),
}  # fmt: skip

# no policy reads the bound: it judges finished runs, with a linear programme
OFFLINE = {"scheduler/simulator/bound.py": {"scipy"}}

IMPORT = """
import importlib, json, sys
modules, forbidden = json.loads(sys.argv[1])

class Wall:
    def find_spec(self, name, path=None, target=None):
        parts = name.split(".")
        if parts[0] in forbidden or ".".join(parts[:2]) in forbidden:
            raise ModuleNotFoundError(f"{name} is behind the wall", name=name)

# not sys.modules[name] = None: scipy asks sys.modules whether torch is there
sys.meta_path.insert(0, Wall())
for name in modules:
    importlib.import_module(name)
"""


def modules_of(package):
    names = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = ("lengthwise", *path.relative_to(ROOT).with_suffix("").parts)
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


def pure_modules(package):
    _, excepted = WALLS[package]
    return [m for m in modules_of(package) if not m.startswith(excepted or ("\0",))]


@pytest.mark.parametrize("package", WALLS)
def test_the_package_imports_without_what_it_may_not_name(package):
    forbidden, _ = WALLS[package]
    argument = json.dumps([pure_modules(package), sorted(forbidden)])
    done = subprocess.run(
        [sys.executable, "-c", IMPORT, argument],
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.strip().splitlines()[-1]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def who_imports(top):
    """Files that import a distribution anywhere, inside functions too."""
    return {
        str(path.relative_to(ROOT))
        for package in WALLS
        for path in (ROOT / package).rglob("*.py")
        if any(name.split(".")[0] == top for name in imports_of(path))
    }


def test_only_the_registry_talks_to_mlflow():
    assert who_imports("mlflow") == {
        "training/registry/models.py",
        "training/registry/pyfunc_model.py",
    }


def test_only_the_adapter_names_vllm():
    assert {f for f in who_imports("vllm") if not f.startswith("scheduler/vllm_adapter/")} == set()


def test_the_scheduler_core_needs_numpy_and_numba_only():
    standard = sys.stdlib_module_names | {"lengthwise", "numpy", "numba"}
    for path in (ROOT / "scheduler").rglob("*.py"):
        if "vllm_adapter" not in path.parts:
            allowed = standard | OFFLINE.get(str(path.relative_to(ROOT)), set())
            beyond = {name.split(".")[0] for name in imports_of(path)} - allowed
            assert not beyond, f"{path.relative_to(ROOT)} imports {beyond}"
