"""Champion against challenger on replayed traffic, and what MLflow keeps of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.data.request_log import RequestLogWriter
from lengthwise.data.slo import Slo, SloTable
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.distribution import LengthDistribution
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.training.bench.judge import judge, logged_traffic
from lengthwise.training.bench.judged_side import Side, objections, side_of
from lengthwise.training.bench.results.records import RequestRecord
from lengthwise.training.bench.served import SERVED_FILE, Server, server_of, write_served
from lengthwise.training.bench.session import profile_path
from lengthwise.training.cli.app import app
from lengthwise.training.registry.connection import connect
from lengthwise.training.registry.models import register, resolve_predictor

SLOS = {"chat": {"slo_ttft_ms": 1500.0}, "code": {"slo_e2e_ms": 20_000.0}}


@pytest.fixture(scope="module")
def bad_dir(tmp_path_factory):
    """A predictor that learned the lengths of other prompts: calibrated, and blind."""
    parts = split_table(synthetic_table(rows=600))
    for part in parts.values():
        rng = np.random.default_rng(0)
        part["output_tokens"] = rng.permutation(part["output_tokens"].to_numpy())
    directory = tmp_path_factory.mktemp("blind") / "native"
    fit_predictor(parts["train"], parts["calibration"], n_estimators=10).save(directory)
    return directory


@pytest.fixture(scope="module")
def log(predictor_dir, tmp_path_factory):
    """700 requests in 20 s, far more than the engine of the profile carries."""
    predictor = LengthPredictor.load(predictor_dir)
    table = synthetic_table(rows=700, seed=9)
    classes = ["chat" if i % 2 else "code" for i in range(len(table))]
    features = predictor.features(table["prompt"].tolist(), classes)
    folder = tmp_path_factory.mktemp("traffic")
    for name, with_text in (("text", True), ("features", False)):
        writer = RequestLogWriter(folder / name)
        for i, row in enumerate(table.itertuples()):
            writer.write(
                {
                    "request_id": f"r{i}",
                    "status": "finished",
                    "arrival_unix_s": 1e9 + 20.0 * i / len(table),
                    "slo_class": classes[i],
                    **SLOS[classes[i]],
                    "prompt_tokens": int(row.prompt_tokens),
                    "output_tokens": int(row.output_tokens),
                    "prompt": row.prompt if with_text else None,
                    "features": features[i].tolist(),
                    "feature_contract": predictor.feature_contract,
                }
            )
        writer.close()
    return folder


@pytest.fixture
def versions(workspace, predictor_dir, bad_dir):
    """Version 1, champion, is blind; version 2, challenger, reads the prompt."""
    register(bad_dir, workspace=workspace)
    register(predictor_dir, workspace=workspace)
    return workspace


def run(*args):
    return CliRunner().invoke(app, ["promote", *map(str, args)])


def alias(workspace, name):
    with connect(workspace, writing=False) as mlflow:
        return mlflow.MlflowClient().get_model_version_by_alias("output-length", name)


def test_a_better_challenger_is_promoted_with_evidence_and_can_be_taken_back(versions, log):
    done = run("--from-log", log / "text", "--json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["promoted"] is True
    assert document["challenger"]["attainment"] > document["champion"]["attainment"]
    assert document["requests"] == 700
    now = alias(versions, "champion")
    assert now.version == 2
    assert now.tags["promotion"].startswith("promoted: no worse")
    assert alias(versions, "previous").version == 1
    with connect(versions, writing=False) as mlflow:
        client = mlflow.MlflowClient()
        files = {f.path for f in client.list_artifacts(now.tags["promotion_run"])}
        assert {"decision.json", "comparison.json", "plots"} <= files
        metrics = client.get_run(now.tags["promotion_run"]).data.metrics
        assert metrics["challenger/attainment"] == document["challenger"]["attainment"]
    back = run("--rollback")
    assert "champion is version 1 again" in back.stdout
    assert alias(versions, "champion").version == 1
    assert alias(versions, "champion").aliases == ["champion"]


def test_a_worse_challenger_is_refused_unless_forced(workspace, predictor_dir, bad_dir, log):
    register(predictor_dir, workspace=workspace)
    register(bad_dir, workspace=workspace)
    dry = run("--from-log", log / "text", "--dry-run")
    assert dry.exit_code == 1
    assert "would refuse" in dry.stdout
    refused = run("--from-log", log / "text")
    assert refused.exit_code == 1
    assert "worse beyond noise" in refused.stdout
    assert alias(workspace, "champion").version == 1
    assert alias(workspace, "challenger").tags["promotion"].startswith("refused: its SLO")
    forced = run("--from-log", log / "text", "--force")
    assert forced.exit_code == 0
    assert alias(workspace, "champion").version == 2
    assert alias(workspace, "champion").tags["promotion"].startswith("promoted by force")


def test_logged_features_will_do_for_versions_that_read_them(versions, predictor_dir, log):
    traffic = logged_traffic(log / "features", 500)
    assert len(traffic.source.requests) == 500
    server = Server(load_profile("tiny-cpu"))
    same = resolve_predictor(predictor_dir, workspace=versions)
    decision = judge(same, same, traffic, server)
    assert decision.difference == 0.0
    assert decision.promote
    blind = resolve_predictor("models:/output-length/1", workspace=versions)
    with pytest.raises(InputError, match="holds no text"):
        judge(blind, same, traffic, server)


def test_a_replay_serves_as_the_server_did(workspace, predictor_dir, log, tmp_path):
    """Its profile, policy, class weights and limits, from what `serve` kept beside the log."""
    folder = tmp_path / "log"
    shutil.copytree(log / "text", folder)
    settings = make_settings(
        {
            "policy": "feasible-edf",
            "max_wait_s": 7.0,
            "slo_table": {"chat": {"ttft_ms": 1500, "weight": 4}, "code": {"e2e_ms": 20_000}},
        }
    )
    args = ["--max-num-seqs", "3", "--port", "80", "--api-key=secret"]
    write_served(folder, "org/Model-7B", settings.model_dump(mode="json"), args)
    assert "secret" not in (folder / SERVED_FILE).read_text()
    with pytest.raises(InputError, match=r"no engine profile of org/Model-7B, the served model"):
        server_of(folder, workspace)
    path = profile_path(workspace, "org/Model-7B")
    path.parent.mkdir(parents=True)
    path.write_text(replace(load_profile("tiny-cpu"), name="of-7b").to_json())
    profile_path(workspace, "zzz").write_text(load_profile("shape-few-slots").to_json())
    server = server_of(folder, workspace)
    assert (server.profile.name, server.profile.capacity.max_num_seqs) == ("of-7b", 3)
    assert (server.policy, server.max_wait_s) == ("feasible-edf", 7.0)
    assert server.slos.weight("chat") == 4
    assert server_of(folder, workspace, profile="shape-few-slots").profile.name != "of-7b"
    (one_file,) = folder.glob("requests-*.jsonl")
    assert server_of(one_file, workspace) == server

    same = resolve_predictor(predictor_dir, workspace=workspace)
    traffic = logged_traffic(folder, 300)
    weighted = judge(same, same, traffic, server)
    plain = judge(same, same, traffic, replace(server, slos=SloTable({})))
    assert weighted.champion.attainment != plain.champion.attainment
    assert weighted.profile == "of-7b"


def test_without_a_word_of_the_model_only_one_profile_will_do(workspace, log):
    assert server_of(log / "text", workspace).profile.name == "tiny-cpu"
    for name in ("one", "two"):
        path = profile_path(workspace, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(replace(load_profile("tiny-cpu"), name=name).to_json())
        if name == "one":
            assert server_of(None, workspace).profile.name == "one"
    with pytest.raises(InputError, match=r"several models are calibrated \(one, two\): give --mod"):
        server_of(None, workspace)
    assert server_of(None, workspace, model="two").profile.name == "two"
    (log / "text" / SERVED_FILE).write_text("{}")
    with pytest.raises(InputError, match="is not what a server kept of itself"):
        server_of(log / "text", workspace)
    (log / "text" / SERVED_FILE).unlink()


def test_one_odd_request_does_not_stop_a_judgement(versions, log, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(log / "text", folder)
    odd = {"request_id": "odd", "status": "finished", "arrival_unix_s": 2e9, "prompt_tokens": 3,
           "output_tokens": 5}  # fmt: skip
    lines = [json.dumps(odd), json.dumps(odd | {"features": [1.0], "feature_contract": "x"}),
             json.dumps(odd | {"status": "?"}), "{"]  # fmt: skip
    (folder / "requests-99999999.jsonl").write_text("\n".join(lines) + "\n")
    traffic = logged_traffic(folder, 400)
    assert (len(traffic.source.requests), traffic.features) == (398, None)
    assert traffic.left_out == ("2 without prompt text",)
    done = run("--from-log", folder, "--requests", 200, "--dry-run", "--json")
    document = json.loads(done.stdout.splitlines()[-1])
    assert document["left_out"] == ["2 without prompt text"]
    assert document["profile_reason"].startswith("tiny-cpu, the shipped")


def test_features_of_another_width_are_left_out(log, tmp_path):
    folder = tmp_path / "log"
    shutil.copytree(log / "features", folder)
    (file,) = folder.glob("requests-*.jsonl")
    lines = file.read_text().splitlines()
    row = json.loads(lines[-1])
    lines[-1] = json.dumps(row | {"features": row["features"][:-1]})
    file.write_text("\n".join(lines) + "\n")
    traffic = logged_traffic(folder, 500)
    assert traffic.features.shape == (499, len(row["features"]))
    assert [part.split(" of width ")[1] for part in traffic.left_out] == [
        str(len(row["features"]) - 1)
    ]


def test_the_clients_limits_are_replayed(tmp_path):
    writer = RequestLogWriter(tmp_path)
    for i in range(100):
        limit = {0: 50, 1: None, 2: 3}[i % 3]  # 3: less than the answer, so not in force
        writer.write(
            {"request_id": f"r{i}", "status": "finished", "arrival_unix_s": 1e9 + i,
             "slo_class": "chat", "prompt_tokens": 5, "output_tokens": 10, "max_tokens": limit,
             "prompt": "hello"}
        )  # fmt: skip
    writer.close()
    traffic = logged_traffic(tmp_path, 100)
    found = [r.max_tokens for r in traffic.source.requests]
    assert found == [50, None, None] * 33 + [50]

    class Told:
        def predict(self, prompts, classes, tokens, limits):
            return limits

    assert traffic.predict(Told(), traffic.source.requests[:3], "v") == [50, np.inf, np.inf]


def test_intervals_that_do_not_hold_speak_against_it_unless_the_champions_are_worse():
    fine, loose = Side("a", 0.9, 0.81, 50.0), Side("b", 0.9, 0.97, 50.0)
    assert objections(fine, loose, 0.1) == [
        "its 80 % intervals hold 97% of the answers, outside 70% to 90%"
    ]
    assert objections(loose, fine, 0.1) == []
    assert objections(Side("a", 0.9, 0.5, 1.0), Side("b", 0.9, 0.6, 1.0), 0.1) == []
    assert objections(fine, Side("b", 0.9, 0.97, 50.0, coverage_due=0.95), 0.1) == []


def record_of(tokens):
    return RequestRecord(0, 0, Slo(), 0.0, 0.0, 5, tokens, tokens, ttft_s=1.0, e2e_s=2.0)


def test_an_interval_that_ends_at_the_limit_holds_all_that_was_cut():
    """Nine answers in ten reach the limit of 96: both right and told by no width."""
    levels = [0.05, 0.1, 0.2, 0.5, 0.9, 0.95]
    records = [record_of(n) for n in [40, *[96] * 9]]
    right = LengthDistribution.from_rows(
        levels, [[40, 95.9, 200, 300, 400, 500]] * 10, cap=[96.0] * 10
    )
    side = side_of("a", records, [right], lambda record: 1.0)
    assert side.coverage == 0.9
    assert side.coverage_due == pytest.approx(0.9, abs=0.01)
    # one that learned from cut answers ends a hair below the limit
    learned = LengthDistribution.from_rows(
        levels, [[40, 95.9, *[95.9996] * 4]] * 10, cap=[96.0] * 10
    )
    side = side_of("b", records, [learned], lambda record: 1.0)
    assert (side.coverage, side.off) == (0.9, pytest.approx(0.0, abs=0.01))
    # without limits as ever
    wide = LengthDistribution.from_rows(levels, [[40, 50, 60, 70, 97, 98]] * 10)
    side = side_of("c", records, [wide], lambda record: 1.0)
    assert side.coverage_due == pytest.approx(0.8, abs=0.001)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--load", "0"], "load must be above 0"),
        (["--from-log", "nowhere"], "no such file"),
        (["--challenger", "models:/output-length/1"], "same predictor"),
        (["--challenger", "models:/output-length/9"], "output-length"),
    ],
)
def test_bad_input_is_one_line(versions, args, says):
    done = run(*args)
    assert done.exit_code == 2
    assert says in done.stderr


def test_without_a_promotion_there_is_nothing_to_roll_back(versions):
    done = run("--rollback")
    assert done.exit_code == 2
    assert "nothing to roll back" in done.stderr


def test_the_arena_serves_where_there_is_no_log(versions):
    done = run("--workload", "paper", "--source", "synthetic", "--requests", 200, "--seeds", 1)
    assert done.exit_code in (0, 1)
    assert "at load 1.4, 200 requests (modeled, no engine ran)" in done.stdout
    assert "Played on engine profile tiny-cpu, the shipped tiny-cpu: none is cal" in done.stdout


def test_a_rollback_in_a_workspace_without_a_store_makes_none(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LENGTHWISE_HOME", str(tmp_path))
    done = run("--rollback")
    assert done.exit_code == 2
    assert "does not exist yet" in done.stderr
    assert not (tmp_path / "mlruns" / "mlflow.db").exists()
