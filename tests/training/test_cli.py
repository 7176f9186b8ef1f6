import gzip
import json
import resource
import shutil
import socket
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from lengthwise.training.cli.app import app

HEAVY = (
    "numpy", "pandas", "mlflow", "lightgbm", "sklearn", "numba", "torch", "vllm", "rich",
    "scipy", "matplotlib", "ray", "pyarrow", "sqlalchemy", "requests", "transformers",
)  # fmt: skip


@pytest.fixture
def run(workspace, monkeypatch):
    """Run a command in a fresh workspace; returns Click's result."""

    from lengthwise.predictor.fitting import fit
    from lengthwise.training.train import worth

    # fewer trees and dots than usual: what is tested here is what surrounds them
    monkeypatch.setattr("lengthwise.training.figures.DPI", 30)
    monkeypatch.setattr(fit, "fit_predictor", partial(fit.fit_predictor, n_estimators=30))
    monkeypatch.setattr(worth, "decision_value", partial(worth.decision_value, requests=200))

    def invoke(*args, **kwargs):
        return CliRunner().invoke(app, [str(arg) for arg in args], **kwargs)

    return invoke


@pytest.fixture
def refuses(run):
    """Run a command that must fail with one line on stderr; returns the line."""

    def invoke(*args):
        result = run(*args)
        assert result.exit_code == 2, (result.exit_code, result.output, result.exception)
        (line,) = result.stderr.splitlines()
        assert line.startswith("lengthwise: error: ")
        return line

    return invoke


def test_help_imports_nothing_heavy():
    code = (
        f"import sys, lengthwise.training.cli.app; print([m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [(), ("serve",), ("train",), ("simulate",), ("register",), ("bench",), ("data", "describe")],
)
def test_a_whole_help_loads_neither_what_is_heavy_nor_what_it_explains(command):
    code = """
import contextlib, io, runpy, sys
sys.argv[0] = "lengthwise"
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    runpy.run_module("lengthwise", run_name="__main__")
print(*sys.modules)
"""
    line = [sys.executable, "-c", code, *command, "--help"]
    loaded = subprocess.run(line, capture_output=True, text=True, check=True).stdout.split()
    assert "lengthwise.training.cli.serving.serve" in loaded
    ours = ("scheduler", "predictor", "data.sources", "training.bench", "training.train",
            "training.registry.models")  # fmt: skip
    unwanted = {*HEAVY, "asyncio", "sqlite3", *(f"lengthwise.{part}" for part in ours)}
    assert unwanted & set(loaded) == set()


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ((), ("train", "register", "predict", "compare", "serve", "doctor", "data", "bench")),
        (("serve",), ("--policy", "--predictor", "--slo-table", "--request-log")),
    ],
)
def test_help_answers_at_once(command, named):
    """In processor time, for the machine may be busy."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    line = [sys.executable, "-m", "lengthwise", *command, "--help"]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.4
    for name in named:
        assert f" {name} " in done.stdout


def test_version(run):
    assert run("--version").stdout.strip() == f"lengthwise {version('lengthwise')}"


def test_train_register_predict_compare(run, workspace, tmp_path):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    assert run("data", "synthesize", "--output", rows, "--rows", 400).exit_code == 0
    odd = tmp_path / "odd.jsonl"
    odd.write_text(rows.read_text() + '{"prompt": "p", "output": 4}\n')
    trained = run("train", "--input", odd, "--register", "--json")
    assert trained.exit_code == 0, trained.output
    document = json.loads(trained.stdout.splitlines()[-1])
    (entry,) = document["unused"]["skipped"]
    assert entry["first"] == f"{odd}:401: output must be text, got 4"
    described = run("data", "describe", odd)
    assert f"Skipped 1 row: output must be text; first: {odd}:401: " in described.stdout
    assert document["model_uri"] == "models:/output-length/1"
    assert document["metrics"]["mae"] > 0
    assert document["metrics"]["baselines"]["class_gaussian"]["mae"] > 0
    assert sum(document["rows"].values()) == 400
    plots = {path.name for path in workspace.artifacts.rglob("plots/*.png")}
    assert plots == {
        "predicted_against_true.png", "calibration.png", "error_by_class.png", "interval_width.png",
        "importances.png",
    }  # fmt: skip

    done = run("predict", "--model", "models:/output-length@champion",
               "--input", rows, "--output", out)  # fmt: skip
    assert done.exit_code == 0, done.output
    first = json.loads(out.read_text().splitlines()[0])
    quantiles = list(first["quantiles"].values())
    assert list(first["quantiles"])[::11] == ["0.05", "0.99"]
    assert quantiles == sorted(quantiles)
    assert len(out.read_text().splitlines()) == 400

    again = run("register", document["directory"], "--alias", "shadow", "--json")
    assert json.loads(again.stdout)["aliases"] == ["shadow"]
    table = json.loads(run("compare", "--json").stdout)
    assert [v["version"] for v in table["versions"]] == [1, 2]
    assert table["versions"][0]["metrics"]["mae"] == pytest.approx(document["metrics"]["mae"])
    assert table["versions"][1]["metrics"]["mae"] == pytest.approx(document["metrics"]["mae"])
    assert "champion" in run("compare").stdout


def test_without_data_the_synthetic_corpus_is_used_and_named(run, monkeypatch):
    monkeypatch.delenv("LENGTHWISE_DATA", raising=False)
    trained = run("train", "--limit", 300)
    assert trained.exit_code == 0, trained.output
    assert "data: synthetic" in trained.stdout
    assert "say nothing of real data" in trained.stdout
    assert "class_quantiles" in trained.stdout
    uri = next(line for line in trained.stdout.splitlines() if "models:/m-" in line).split()[0]
    assert f"lengthwise register {uri}" in trained.stderr
    registered = run("register", uri)
    assert registered.stdout.startswith("models:/output-length/1 (alias: champion")


def test_unknown_models_are_refused(refuses, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    for name, words in {
        "nothing-here": "neither a directory nor a model URI",
        "models:/output-length@champion": "not found",
        str(tmp_path): "holds no card.json",
    }.items():
        line = refuses("predict", "--model", name, "--input", rows, "--output", tmp_path / "out")
        assert words in line
    assert "not found" in refuses("register", "models:/output-length/4")
    assert "--predictor none" in refuses("serve", "tiny", "--port", "0")


def test_a_corrupt_predictor_is_refused(refuses, predictor_dir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    broken = tmp_path / "broken"
    shutil.copytree(predictor_dir, broken)
    (broken / "features.npz").write_bytes(b"PK not really")
    line = refuses("predict", "--model", broken, "--input", rows, "--output", tmp_path / "out")
    assert "features.npz" in line
    (broken / "card.json").write_text("{")
    line = refuses("predict", "--model", broken, "--input", rows, "--output", tmp_path / "out")
    assert "card.json" in line


def test_a_dead_tracking_server_stops_a_training_before_it_starts(refuses, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    start = time.monotonic()
    for command in (["train", "--pack", "synthetic"], ["compare"], ["register", "models:/x/1"]):
        assert f"http://127.0.0.1:{port} does not answer" in refuses(*command)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "no data source"),
        (b"", ""),
        (b'{"prompt": "x", "response": \n{"prompt"', "not JSON"),
        (b'{"response": "an answer to nothing"}\n', ":1"),
        (b'{"prompt": "x", "output_tokens": -4}\n', ":1"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_bad_data_files_are_refused(refuses, tmp_path, content, words):
    path = tmp_path / "rows.jsonl"
    if content is not None:
        path.write_bytes(content)
    line = refuses("train", "--input", path)
    assert words in line
    assert "rows.jsonl" in line


def test_an_archive_truncated_before_its_first_row_is_refused(refuses, tmp_path):
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "x", "output_tokens": 4}\n' * 1000)[:15])
    assert "gzip" in refuses("train", "--input", path)


def test_too_little_data_is_refused(refuses, run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    run("data", "synthesize", "--output", rows, "--rows", 30)
    assert "too small" in refuses("train", "--input", rows)


def test_options_that_contradict_or_do_not_exist(refuses, run):
    assert "one of --pack" in refuses("train", "--pack", "gpt35", "--input", "x.jsonl")
    assert "unknown estimator" in refuses("train", "--pack", "synthetic", "--estimator", "oracle")
    assert run("train", "--nonsense").exit_code == 2
    assert run("predict", "--model", "x").exit_code == 2


def test_an_unwritable_output_is_one_line(refuses, predictor_dir, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "x"}\n')
    target = tmp_path / "missing" / "out.jsonl"
    line = refuses("predict", "--model", predictor_dir, "--input", rows, "--output", target)
    assert str(target.parent) in line


def test_debug_shows_the_traceback(run, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_DEBUG", "1")
    assert run("compare").exit_code == 0
    result = run("register", "models:/output-length/4")
    assert result.exit_code == 1
    assert type(result.exception).__name__ == "RegistryError"


def test_data_list_names_what_is_there(run, monkeypatch):
    monkeypatch.delenv("LENGTHWISE_DATA", raising=False)
    listed = json.loads(run("data", "list", "--json").stdout)
    assert listed["default"] == "synthetic"
    assert {s["name"]: s["state"] for s in listed["sources"]}["dolly_15k"] == "to fetch"


def test_data_describe(run, refuses):
    described = json.loads(run("data", "describe", "synthetic", "--json").stdout)
    assert described["source_label"] == "synthetic"
    assert "no data source" in refuses("data", "describe", "nothing")
    assert "no public set" in refuses("data", "fetch", "nothing")


class Calls(list):
    keeper = emulate = None


@pytest.fixture
def served(monkeypatch):
    """What `serve` would have started, and the keeper of its live file."""
    calls = Calls()

    def serve_forever(model, settings, vllm_args, *, cache_dir, keeper, emulate):
        calls.append((model, settings, list(vllm_args)))
        calls.keeper, calls.emulate = keeper, emulate
        return 0

    name = "lengthwise.scheduler.vllm_adapter.server.foreground.serve_forever"
    monkeypatch.setattr(name, serve_forever)
    monkeypatch.setattr(
        "lengthwise.training.cli.serving.serve.check_start", lambda model, args: None
    )
    return calls


def test_serve_on_an_emulated_device_plans_by_its_profile(run, served, tmp_path):
    done = run("serve", "tiny", "--predictor", "none", "--emulate", "tiny-cpu",
               "--step-log", tmp_path / "steps.jsonl")  # fmt: skip
    assert done.exit_code == 0, done.output
    ((_, settings, _),) = served
    assert (settings.profile, settings.refit_steps) == ("tiny-cpu", 0)
    assert served.emulate.profile == "tiny-cpu"
    assert served.emulate.step_log == str(tmp_path / "steps.jsonl")
    # the planner may be told another profile than the device has, to see what that costs
    run("serve", "tiny", "--predictor", "none", "--emulate", "tiny-cpu", "--profile", "other")
    assert served[1][1].profile == "other"


def test_serve_refuses_what_no_device_can_be(run, served, tmp_path):
    done = run("serve", "tiny", "--predictor", "none", "--emulate", "nowhere")
    assert done.exit_code == 2
    assert "no profile 'nowhere'" in done.output
    done = run("serve", "tiny", "--predictor", "none", "--step-log", tmp_path / "x")
    assert done.exit_code == 2
    assert "needs --emulate PROFILE" in done.output
    assert served == []


def test_serve_finds_the_champion_and_passes_vllms_options_on(run, served, predictor_dir, tmp_path):
    run("register", predictor_dir)
    table = tmp_path / "slo.json"
    table.write_text('{"chat": {"ttft_ms": 500, "weight": 2}}')
    done = run(
        "serve", "tiny", "--port", "8001", "--policy", "feasible-edf", "--slo-table", table,
        "--request-log", tmp_path / "log", "--max-num-seqs=16", "--max-wait", "30",
        "--request-log-max-mb", "50", "--request-log-max-age-days", "7",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    ((model, settings, vllm_args),) = served
    assert model == "tiny"
    assert vllm_args == ["--port", "8001", "--max-num-seqs=16"]
    assert settings.predictor_version == "models:/output-length/1"
    assert (settings.policy, settings.lengths) == ("feasible-edf", "learned")
    assert settings.max_wait_s == 30
    assert settings.slo_table == {"chat": {"ttft_ms": 500, "weight": 2}}
    assert settings.request_log == str(tmp_path / "log")
    assert (settings.request_log_max_mb, settings.request_log_max_age_days) == (50, 7)
    kept = json.loads((tmp_path / "log" / "server.json").read_text())
    assert (kept["model"], kept["limits"]) == ("tiny", {"max_num_seqs": 16})
    assert kept["settings"]["slo_table"] == settings.slo_table


def test_serve_keeps_a_live_file_that_follows_an_alias_and_the_operators_files(
    run, served, predictor_dir, tmp_path
):
    from lengthwise.scheduler.vllm_adapter.live import LiveState, live_state, read_live, write_live

    run("register", predictor_dir)
    table, policy, live = (tmp_path / name for name in ("slo.json", "policy.json", "live.json"))
    table.write_text('{"chat": {"ttft_ms": 500}}')
    policy.write_text('{"policy": "sa", "policy_params": {"horizon": 2.0}}')
    options = ("--slo-table", table, "--policy-file", policy)
    assert run("serve", "tiny", *options).exit_code == 0
    settings = served[0][1]
    assert (settings.policy, settings.policy_params) == ("sa", {"horizon": 2.0})
    write_live(live, live_state(settings))
    table.write_text('{"chat": {"ttft_ms": 900}}')
    policy.write_text('{"policy": "edf"}')
    run("register", predictor_dir, "--alias", "champion")
    served.keeper.keep(live, reread=False)
    followed = read_live(live)
    assert followed.predictor.version == "models:/output-length/2"
    assert followed.policy == "sa"
    served.keeper.keep(live, reread=True)
    followed = read_live(live)
    assert (followed.policy, followed.policy_params) == ("edf", {})
    assert followed.slo_table == {"chat": {"ttft_ms": 900}}

    assert run("serve", "tiny", "--predictor", predictor_dir).exit_code == 0
    write_live(live, LiveState())
    served.keeper.keep(live, reread=True)
    assert read_live(live) == LiveState()


def test_serve_without_a_predictor(run, served):
    assert run("serve", "tiny", "--predictor", "none").exit_code == 0
    ((_, settings, _),) = served
    assert (settings.predictor_dir, settings.lengths) == (None, "none")


@pytest.mark.parametrize(
    "theirs",
    [
        ["-dph", "127.0.0.1"],
        ["-dph=127.0.0.1"],
        ["-tp", "2", "-pp", "1", "-q", "awq"],
        ["-hh"],
        ["-O3"],
        ["--host", "::1", "--port=81"],
        ["--max_num_seqs", "4", "--no-enable-prefix-caching"],
        ["--hf-overrides", '{"a": -1}', "--speculative-config.method=ngram"],
        ["--limit-mm-per-prompt", "image=2", "word", "--", "-h-is-not-asked"],
        ["--polic", "sa"],
    ],
)
def test_what_is_not_ours_reaches_vllm_as_it_is(run, served, theirs):
    """In its order, whatever options of ours stand between."""
    options = ("--predictor", "none", "--log-prompts", "--no-fair-tenants", "--policy=edf")
    half = len(theirs) // 2 * 2 if theirs[0] != "--limit-mm-per-prompt" else 2
    done = run("serve", *options[:2], "tiny", *theirs[:half], *options[2:], *theirs[half:])
    assert done.exit_code == 0, done.output
    ((model, settings, passed),) = served
    assert (model, passed) == ("tiny", theirs)
    assert (settings.policy, settings.log_prompts, settings.fair_tenants) == ("edf", True, False)


@pytest.mark.parametrize("words", [["-h"], ["tiny", "--help"], ["tiny", "-tp", "2", "-h"]])
def test_help_of_serve_is_asked_for_by_name(run, served, words):
    done = run("serve", *words)
    assert (done.exit_code, served) == (0, [])
    assert "Usage:" in done.stdout


@pytest.mark.parametrize(
    "words", [[], ["--policy", "sa"], ["tiny", "--policy"], ["tiny", "--seed", "x"]]
)
def test_serve_that_cannot_be_is_no_success(run, served, words):
    assert run("serve", *words).exit_code == 2
    assert served == []


def test_a_taken_port_and_a_missing_model_are_told_first(refuses, tmp_path):
    """Before the predictor is looked for: there is none here."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        line = refuses("serve", "tiny", "--host", "127.0.0.1", "--port", port)
        assert f"127.0.0.1:{port}: it is taken" in line
    assert "no such directory" in refuses("serve", tmp_path / "none", "--port", "0")
    assert "holds no model" in refuses("serve", tmp_path, "--port", "0")


def test_serve_hands_admission_and_tenants_over(run, served, tmp_path):
    rule, weights = tmp_path / "rule.json", tmp_path / "weights.json"
    rule.write_text(json.dumps({"mode": "downgrade", "per_class": {"chat": 0.1}}))
    weights.write_text(json.dumps({"gold": 4}))
    tiny = ("serve", "tiny", "--predictor", "none")
    assert run(*tiny, "--admission", rule, "--tenant-weights", weights).exit_code == 0
    assert run(*tiny, "--admission", "shed", "--no-fair-tenants").exit_code == 0
    (_, first, _), (_, second, _) = served
    assert first.admission.mode == "downgrade"
    assert first.admission.per_class == {"chat": 0.1}
    assert (first.fair_tenants, first.tenant_weights) == (True, {"gold": 4})
    assert (second.admission.mode, second.fair_tenants) == ("shed", False)


def test_serve_refuses_what_the_server_would(refuses, served, tmp_path):
    def refused(*options):
        return refuses("serve", "tiny", "--predictor", "none", *options)

    assert "known: fcfs" in refused("--policy", "best")
    assert "lengths" in refused("--lengths", "guessed")
    assert "off, shed, downgrade" in refused("--admission", "drop")
    assert "MODEL comes before" in refuses("serve", "--port", "80", "tiny")
    table = tmp_path / "slo.json"
    assert "cannot read SLO table" in refused("--slo-table", table)
    for content in ("{", "[]", '{"chat": {"ttft_ms": -1}}', '{"chat": {"speed": 1}}'):
        table.write_text(content)
        refused("--slo-table", table)
    assert served == []
