import json

from lengthwise.training.cli.versions import as_json, latest, print_versions
from lengthwise.training.registry.attainment import log_bench, versions_table
from lengthwise.training.registry.connection import connect
from lengthwise.training.registry.models import register, resolve_predictor


def arm(policy, lengths, attainment, ci=None):
    return {
        "policy": policy,
        "lengths": lengths,
        "requests": 40,
        "lost": 0,
        "attainment": attainment,
        "attainment_ci95": ci,
        "mean_e2e_s": 2.5,
        "plan_ms_p50": None,
        "per_class": {"chat": {"requests": 40}},
    }


def bench(stock, ours, load=1.5):
    return {
        "provenance": "measured",
        "workload": "paper",
        "load": load,
        "predictor": "models:/output-length/1",
        "source_label": "synthetic",
        "arms": [arm("stock", "none", stock, [0.2, 0.3]), arm("sa", "learned", ours, [0.8, 0.9])],
    }


def test_a_bench_shows_on_the_version_it_used(workspace, predictor_dir):
    version = register(predictor_dir, workspace=workspace)
    used = resolve_predictor(workspace=workspace)
    run_id = log_bench(
        bench(0.25, 0.85), predictor=used, files=[predictor_dir / "card.json"], workspace=workspace
    )
    with connect(workspace, writing=False) as mlflow:
        client = mlflow.MlflowClient()
        metrics = {m.key: m.value for m in client.get_logged_model(version.model_id).metrics}
        assert metrics["slo_attainment.paper.1.5/sa:learned"] == 0.85
        assert metrics["slo_attainment.paper.1.5/stock"] == 0.25
        tags = client.get_model_version("output-length", "1").tags
        assert tags["slo_attainment.paper.1.5"] == "stock 0.250, sa:learned 0.850 (measured)"
        run = client.get_run(run_id)
        assert run.data.metrics["attainment_low/sa:learned"] == 0.8
        assert run.data.metrics["mean_e2e_s/stock"] == 2.5
        assert run.data.tags["source_label"] == "synthetic"
        assert {a.path for a in client.list_artifacts(run_id)} == {"card.json", "result.json"}


def test_the_table_holds_every_version_and_its_benches(workspace, predictor_dir, capsys):
    register(predictor_dir, workspace=workspace)
    register(predictor_dir, workspace=workspace)
    used = resolve_predictor(workspace=workspace)
    log_bench(bench(0.2, 0.7), predictor=used, workspace=workspace)
    log_bench(bench(0.25, 0.85), predictor=used, workspace=workspace)
    log_bench(bench(1.0, 1.0, load=0.6), predictor=used, workspace=workspace)
    first, second = versions_table(workspace=workspace)
    assert first.aliases == ("champion",)
    assert first.source_label == "synthetic"
    assert len(first.attainment) == 6
    assert second.attainment == ()
    shown = [(a.load, a.arm, a.attainment) for a in latest(first.attainment)]
    assert shown == [
        ("0.6", "sa:learned", 1.0),
        ("0.6", "stock", 1.0),
        ("1.5", "sa:learned", 0.85),
        ("1.5", "stock", 0.25),
    ]
    print_versions([first, second])
    printed = capsys.readouterr().out
    assert "champion" in printed
    assert "0.850" in printed
    assert "0.700" not in printed
    document = json.loads(json.dumps(as_json([first, second]), allow_nan=False))
    assert [v["version"] for v in document["versions"]] == [1, 2]


def test_a_bench_without_predictor_or_attainment_is_logged(workspace, predictor_dir):
    run_id = log_bench(
        {**bench(None, None), "load": None, "workload": "mine"}, predictor=None, workspace=workspace
    )
    with connect(workspace, writing=False) as mlflow:
        run = mlflow.MlflowClient().get_run(run_id)
    assert run.data.tags["load"] == "file"
    assert not [key for key in run.data.metrics if key.startswith("attainment/")]


def test_an_empty_registry_says_what_to_do(workspace, capsys):
    assert versions_table(workspace=workspace) == []
    print_versions([])
    assert "lengthwise train --register" in capsys.readouterr().out
