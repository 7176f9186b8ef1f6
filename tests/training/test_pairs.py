"""Options that contradict one another: one line that names both, exit status 2, nothing done."""

from __future__ import annotations

import json

import pytest
import typer
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.training.cli.app import app

PAIRS = [
    # what is refused, what it stands against, and the command line
    ("sa:learned", "--predictor none", "bench --predictor none"),
    ("sjf:class", "--predictor none", "bench --predictor none --arms fcfs:oracle,sjf:class"),
    ("sa:learned", "--model none", "simulate --model none --policy sa --lengths learned"),
    ("edf:class", "--model none", "simulate --model none --policy edf"),
    ("--lengths learned", "--predictor none", "serve tiny --predictor none --lengths learned"),
    ("--lengths class", "--predictor none", "serve tiny --predictor none --lengths class"),
    ("--lengths", "'oracle'", "serve tiny --predictor none --lengths oracle"),
    ("--request-log-max-mb 5.0", "--request-log", "serve tiny --request-log-max-mb 5"),
    ("--request-log-max-age-days", "--request-log", "serve tiny --request-log-max-age-days 3"),
    ("--policy edf", "--policy-file", "serve tiny --policy edf --policy-file p.json"),
    ("--tenant-weights", "--no-fair", "serve tiny --no-fair-tenants --tenant-weights w.json"),
    ("--emulate tiny-cpu", "--instances", "serve tiny --instances 2 --emulate tiny-cpu"),
    ("--instances 2", "--warp", "bench --instances 2"),
    ("--route round-robin", "--warp", "bench --route round-robin"),
    ("--route round-robin", "--instances", "bench --warp --emulate tiny-cpu --route round-robin"),
    ("--search-steps 5", "--warp", "bench --search-steps 5"),
    ("--host-factor 2.0", "--warp", "bench --host-factor 2"),
    ("--sa-params {}", "lmdeploy", "bench --engine lmdeploy --sa-params {}"),
    ("--sa-params {}", "fcfs:none", "bench --warp --emulate x --arms fcfs:none --sa-params {}"),
    ("--jobs 2", "--warp", "bench --jobs 2"),
    ("--requests 5", "--duration 9", "bench --requests 5 --duration 9"),
    ("--emulate tiny-cpu", "--recalibrate", "bench --recalibrate --emulate tiny-cpu"),
    ("--profile tiny-cpu", "--recalibrate", "bench --recalibrate --profile tiny-cpu"),
    ("--capacity-rps 3.0", "--recalibrate", "bench --recalibrate --capacity-rps 3"),
    ("--source synthetic", "w.jsonl", "bench --workload w.jsonl --source synthetic"),
    ("--arrivals gamma", "w.jsonl", "simulate --workload w.jsonl --arrivals gamma"),
    ("--dry-run", "--rollback", "promote --rollback --dry-run"),
    ("--from-log log", "--rollback", "promote --rollback --from-log log"),
    ("--force", "--dry-run", "promote --force --dry-run"),
    ("--workload mixed", "--from-log log", "promote --from-log log --workload mixed"),
    ("--seeds 4", "--from-log log", "promote --from-log log --seeds 4"),
    ("--embedding x", "--stream", "train --from-log log --stream --embedding x"),
    ("--estimator bert", "--stream", "train --from-log log --stream --estimator bert"),
    ("--limit 9", "--stream", "train --from-log log --stream --limit 9"),
    ("--no-register", "alias a", "train --no-register --alias a"),
]


@pytest.mark.parametrize(("refused", "against", "line"), PAIRS)
def test_a_contradiction_is_refused_before_anything_runs(
    tmp_path, monkeypatch, refused, against, line
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path / "home"))
    row = {"arrival_s": 0.0, "prompt_tokens": 5, "output_tokens": 5}
    (tmp_path / "w.jsonl").write_text(json.dumps(row) + "\n")
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, line.split())
    assert (done.exit_code, done.stdout) == (2, "")
    (said,) = done.stderr.splitlines()
    assert said.startswith("lengthwise: error: ")
    assert refused in said
    assert against in said
    assert sorted(tmp_path.rglob("*")) == before


def test_without_a_predictor_arms_that_need_none_are_played(tmp_path, monkeypatch):
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path / "home"))
    row = {"prompt_tokens": 5, "output_tokens": 5}
    lines = [json.dumps(row | {"arrival_s": at}) + "\n" for at in range(20)]
    (tmp_path / "w.jsonl").write_text("".join(lines))
    done = CliRunner().invoke(
        app,
        ["simulate", "--workload", str(tmp_path / "w.jsonl"), "--model", "none", "--lengths",
         "oracle", "--policy", "fcfs,sjf:none", "--no-bound", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["predictor"] is None
    assert [arm["lengths"] for arm in document["arms"]] == ["oracle", "none"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["train", "--input", ""], "--input needs a value, got ''"),
        (["train", "--pack="], "--pack needs a value, got ''"),
        (["train", "--limit", "9", "--from-log", ""], "--from-log needs a value"),
        (["predict", "--model", "x", "--input", "x", "--output", ""], "--output needs a value"),
        (["data", "describe", ""], "must not be empty"),
        (["data", "workload", "log", "--output", ""], "--output needs a value"),
        (["register", ""], "must not be empty"),
        (["simulate", "--workload", ""], "--workload needs a value"),
        (["serve", "tiny", "--policy", ""], "--policy needs a value"),
        (["promote", "--slo-table="], "--slo-table needs a value"),
        (["train", "--alias", "v1"], "alias must be letters"),
        (["train", "--alias", "a b", "--limit", "400"], "alias must be letters"),
        (["train", "--seed", "99999999999999999999"], "2147483647"),
    ],
)
def test_what_a_shell_leaves_of_an_unset_variable_is_refused(tmp_path, monkeypatch, line, says):
    """An empty word, and other values that would be refused only after the work."""
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, line)
    assert (done.exit_code, done.stdout) == (2, "")
    assert says in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_an_empty_value_of_the_servers_own_options_is_its_own_affair():
    from lengthwise.training.cli.pairs import refuse_empty

    serve = typer.main.get_command(app).commands["serve"]
    refuse_empty(serve, ["tiny", "--chat-template", "", "--policy", "edf"])
    with pytest.raises(InputError, match="--policy needs a value"):
        refuse_empty(serve, ["tiny", "--chat-template", "", "--policy", ""])
