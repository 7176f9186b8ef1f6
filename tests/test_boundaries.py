"""Who imports whom: pure modules are imported in a process where the forbidden ones are blocked."""

import ast
import json
import subprocess
import sys
from collections import Counter
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
        (
            "lengthwise.predictor.estimators.encoder",
            "lengthwise.predictor.features.reader_states",
        ),
    ),
    "scheduler": (
        ENGINE | LEARNING - {"scipy"}
        | {"mlflow", "matplotlib", "pandas", "pyarrow", "ray"} | ours_but("data", "scheduler"),
        (
            "lengthwise.scheduler.serving",
            "lengthwise.scheduler.vllm_adapter",
            "lengthwise.scheduler.ray_adapter",
            "lengthwise.scheduler.lmdeploy_adapter",
        ),
    ),
    "training": (ENGINE | {"mlflow"}, ("lengthwise.training.registry.pyfunc_model",)),
}  # fmt: skip

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
    """Modules named anywhere in a file; of a package, also the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


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
        "training/registry/connection.py",
        "training/registry/training_runs.py",
        "training/registry/pyfunc_model.py",
    }


def test_only_the_adapter_names_vllm_and_little_of_it():
    assert who_imports("vllm") == {
        "scheduler/vllm_adapter/engine/scheduler.py",
        "scheduler/vllm_adapter/server/engine_kwargs.py",
        "scheduler/vllm_adapter/worker/replay.py",
        "scheduler/vllm_adapter/emulated/fleet.py",
        "scheduler/vllm_adapter/emulated/refusals.py",
        "scheduler/vllm_adapter/emulated/worker.py",
    }


def test_only_its_adapter_names_ray():
    assert {Path(path).parent.as_posix() for path in who_imports("ray")} == {RAY_ADAPTER}


def test_only_its_adapter_names_lmdeploy():
    where = {Path(path).parent.as_posix() for path in who_imports("lmdeploy")}
    assert where == {f"{LMDEPLOY_ADAPTER}/inside"}


def test_the_scheduler_core_needs_numpy_numba_scipy_and_data_only():
    standard = sys.stdlib_module_names | {"lengthwise", "numpy", "numba", "scipy"}
    for path in (ROOT / "scheduler").rglob("*.py"):
        if not {"serving", "vllm_adapter", "ray_adapter", "lmdeploy_adapter"} & set(path.parts):
            beyond = {name.split(".")[0] for name in imports_of(path)} - standard
            assert not beyond, f"{path.relative_to(ROOT)} imports {beyond}"


# room: rooms whose files it may not name, not even inside a function
SERVING = "scheduler/serving"
ADAPTER = "scheduler/vllm_adapter"
RAY_ADAPTER = "scheduler/ray_adapter"
LMDEPLOY_ADAPTER = "scheduler/lmdeploy_adapter"
ADAPTERS = (ADAPTER, RAY_ADAPTER, LMDEPLOY_ADAPTER)
ROOM_WALLS = {
    "scheduler/plan": ("scheduler/policies", "scheduler/guards", "scheduler/simulator"),
    "scheduler/policies": ("scheduler/guards", "scheduler/simulator"),
    "scheduler/guards": ("scheduler/policies", "scheduler/simulator"),
    "scheduler/fleet": (
        "scheduler/policies", "scheduler/guards", "scheduler/simulator", SERVING, *ADAPTERS,
    ),
    SERVING: ("scheduler/simulator", *ADAPTERS),
    f"{SERVING}/api": (f"{SERVING}/engine", f"{SERVING}/server"),
    f"{SERVING}/engine": (f"{SERVING}/api", f"{SERVING}/server"),
    f"{SERVING}/engine/queue": (f"{SERVING}/engine/plans", f"{SERVING}/engine/observed"),
    f"{SERVING}/engine/requests": (f"{SERVING}/engine/plans", f"{SERVING}/engine/observed"),
    f"{SERVING}/server": (f"{SERVING}/api", f"{SERVING}/engine"),
    f"{SERVING}/wire": tuple(f"{SERVING}/{room}" for room in ("api", "engine", "server")),
    RAY_ADAPTER: (
        f"{SERVING}/engine", f"{ADAPTER}/engine", f"{ADAPTER}/worker", "scheduler/simulator",
    ),
    ADAPTER: (RAY_ADAPTER, LMDEPLOY_ADAPTER),
    LMDEPLOY_ADAPTER: (ADAPTER, RAY_ADAPTER),
    f"{ADAPTER}/api": (f"{SERVING}/engine", f"{ADAPTER}/engine", f"{ADAPTER}/worker"),
    f"{ADAPTER}/engine": (f"{SERVING}/api", f"{ADAPTER}/api", f"{ADAPTER}/worker"),
    f"{ADAPTER}/worker": (f"{SERVING}/api", f"{SERVING}/engine", f"{ADAPTER}/api",
                          f"{ADAPTER}/engine"),
    f"{ADAPTER}/server": (f"{SERVING}/api", f"{SERVING}/engine", f"{ADAPTER}/api",
                          f"{ADAPTER}/engine"),
    "scheduler": ("training", "predictor/fitting", "predictor/estimators"),
    "training": (f"{SERVING}/api", f"{SERVING}/engine", f"{ADAPTER}/api", f"{ADAPTER}/engine"),
}  # fmt: skip
# (file, module) that crosses a wall today; the list may only shrink
CROSSINGS: set[tuple[str, str]] = set()


def test_no_room_reaches_into_another():
    found = set()
    for room, closed in ROOM_WALLS.items():
        prefixes = tuple("lengthwise." + other.replace("/", ".") for other in closed)
        for path in (ROOT / room).rglob("*.py"):
            found |= {
                (str(path.relative_to(ROOT)), name)
                for name in imports_of(path)
                if f"{name}.".startswith(tuple(f"{prefix}." for prefix in prefixes))
                and name in MODULES
            }
    assert found == CROSSINGS


# -- the package ------------------------------------------------------------------------------


def named_files():
    """Every module of the package and its file."""
    files = {"lengthwise.__main__": ROOT / "src" / "lengthwise" / "__main__.py"}
    for package in OURS:
        for path in (ROOT / package).rglob("*.py"):
            parts = ("lengthwise", *path.relative_to(ROOT).with_suffix("").parts)
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


MODULES = named_files()
# who imports each other inside functions or for types; the list may only shrink
KNOWN_CIRCLES: set[frozenset[str]] = set()


def circles(graph):
    """The strongly connected components of more than one module (or one that names itself)."""
    reached = {}
    for start in graph:
        seen, todo = set(), [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        reached[start] = seen
    return {
        frozenset({other for other in reached[name] if name in reached[other]})
        for name in graph
        if name in reached[name]
    }


def test_nobody_imports_in_a_circle():
    graph = {
        name: {other for other in imports_of(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }
    assert circles(graph) == KNOWN_CIRCLES
    at_import = {
        name: {other for other in at_top_level(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }
    assert circles(at_import) == set()


def at_top_level(path):
    """Modules imported when the file is; what stands under TYPE_CHECKING is not."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_circles_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}
    assert circles(graph) == {frozenset({"b", "c"})}


def test_the_package_is_four_links():
    root = ROOT / "src" / "lengthwise"
    links = {path.name: path.readlink() for path in root.iterdir() if path.is_symlink()}
    assert links == {package: Path("../..") / package for package in OURS}
    files = {path.name for path in root.iterdir() if not path.is_symlink()}
    assert files - {"__pycache__"} == {"__init__.py", "__main__.py", "py.typed"}


def test_nobody_imports_a_folder_by_its_bare_name():
    """It works from the root of a checkout, and gives a second copy of every class."""
    for folder in (*OURS, "src/lengthwise", "tests", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            bare = {name for name in imports_of(path) if name.split(".")[0] in OURS}
            assert not bare, f"{path.relative_to(ROOT)} imports {bare}"


def test_no_two_files_have_one_name():
    """A traceback, a log line and an editor's tab name a file by its last part only."""
    paths = [path for folder in (*OURS, "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    names = Counter(path.name for path in paths)
    of_their_folder = {"__init__.py", "__main__.py"}
    assert {name for name, times in names.items() if times > 1} <= of_their_folder


def test_nobody_imports_a_conftest():
    """Which of the six it would be depends on what else is collected."""
    for path in (ROOT / "tests").rglob("*.py"):
        assert "conftest" not in set(imports_of(path)), path


def test_every_folder_says_what_it_is():
    for package in (*OURS, "benchmarks"):
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            text = (folder / "__init__.py").read_text(encoding="utf-8")
            assert ast.get_docstring(ast.parse(text)), folder


def test_the_front_door_opens_lazily():
    code = (
        "import sys, lengthwise; heavy = {'numpy', 'numba', 'pandas', 'lightgbm', 'vllm'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert lengthwise.__version__ and lengthwise.fit_predictor\n"
        "assert lengthwise.LengthPredictor.__name__ == 'LengthPredictor'\n"
        "assert lengthwise.Middleware.__name__ == 'LengthwiseMiddleware'\n"
        "assert 'vllm' not in sys.modules\n"
        "assert set(lengthwise.__all__) == set(dir(lengthwise))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
