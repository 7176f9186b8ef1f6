"""Dashboard and alert rules: valid PromQL that asks only for metrics that exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import promql_parser
import pytest
import yaml

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "docs/operations/dashboard.json"
ALERTS = ROOT / "docs/operations/alerts.yml"

# vLLM 0.32's own; tests/vllm/live/test_engine.py finds them on a running server.
ENGINE_NAMES = {
    "vllm:generation_tokens_total",
    "vllm:kv_cache_usage_perc",
    "vllm:num_preemptions_total",
    "vllm:num_requests_running",
    "vllm:prompt_tokens_total",
}

NOT_SHOWN: set[str] = set()

# In a process of its own: a metric can be registered only once in one.
LIST_NAMES = """
import json
from prometheus_client import REGISTRY
before = {s.name for family in REGISTRY.collect() for s in family.samples}
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.engine.engine_metrics import engine_metrics
for made in (api_metrics(), engine_metrics()):
    for metric in vars(made).values():
        if getattr(metric, "_labelnames", ()):
            metric.labels(*["x"] * len(metric._labelnames))
labels = {}
for family in REGISTRY.collect():
    for sample in family.samples:
        if sample.name not in before:
            labels.setdefault(sample.name, set()).update(sample.labels)
print(json.dumps({name: sorted(found) for name, found in labels.items()}))
"""


@pytest.fixture(scope="module")
def registered():
    """The names of our metrics' samples, and the labels of each."""
    done = subprocess.run(
        [sys.executable, "-c", LIST_NAMES], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def panels():
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] != "row":
            yield panel


def expressions():
    """(where, PromQL, labels its legend or text shows) of everything in both files."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], braced(target["legendFormat"])
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"], braced(annotation["titleFormat"])
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            shown = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
            yield rule["alert"], rule["expr"], shown


def braced(text):
    return set(re.findall(r"\{\{(\w+)\}\}", text))


def plain(expression):
    """Grafana's variables replaced by durations."""
    return re.sub(r"\$__(rate_interval|range)", "5m", expression)


def nodes(expression):
    """Every node of the parser's tree."""
    found = []
    promql_parser.walk(expression, lambda node: found.append(node))
    return found


def selectors(expression):
    """(metric, labels matched on) of every selector."""
    found = []
    for node in nodes(expression):
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            alternatives = [node.matchers.matchers, *node.matchers.or_matchers]
            found.append((node.name, {m.name for some in alternatives for m in some}))
    return found


def labels_of(name, registered):
    return {*registered.get(name, ()), "instance", "job"}


@pytest.mark.parametrize(("where", "expression", "shown"), list(expressions()))
def test_expressions_ask_for_metrics_and_labels_that_exist(where, expression, shown, registered):
    tree = promql_parser.parse(plain(expression))
    asked = selectors(tree)
    assert asked, f"{where}: no metric in {expression}"
    for name, matched in asked:
        assert name in registered or name in ENGINE_NAMES, f"{where}: {name} is no metric"
        assert matched <= labels_of(name, registered), f"{where}: {name} lacks {matched}"
    kept = set()
    for node in nodes(tree):
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            there = set().union(*(labels_of(name, registered) for name, _ in selectors(node)))
            assert set(node.modifier.labels) <= there, f"{where}: {node.modifier.labels}"
            kept |= set(node.modifier.labels)
    assert shown <= kept, f"{where} shows {shown - kept}, which its expression drops"


def test_the_check_finds_what_is_wrong(registered):
    wrong = [
        ("lengthwise_typo_total", set()),
        ('lengthwise_fallbacks_total{reason="planner"}', set()),
        ("sum by (tenant_id) (lengthwise_fallbacks_total)", set()),
        ("sum by (cause) (lengthwise_fallbacks_total)", {"slo_class"}),
    ]
    for expression, shown in wrong:
        with pytest.raises(AssertionError):
            test_expressions_ask_for_metrics_and_labels_that_exist(
                "here", expression, shown, registered
            )
    with pytest.raises(ValueError, match="parenthesis"):
        promql_parser.parse("sum(rate(lengthwise_fallbacks_total[5m])")


def test_panels_do_not_overlap_and_have_their_rows():
    document = json.loads(DASHBOARD.read_text())
    cells = set()
    for panel in document["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        covered = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    rows = [panel["title"] for panel in document["panels"] if panel["type"] == "row"]
    assert rows == [
        "SLO attainment", "Queue and plan", "Lengths and drift", "Health", "Several engines",
    ]  # fmt: skip
    assert all(
        target["datasource"]["uid"] == "${datasource}"
        for panel in panels()
        for target in panel["targets"]
    )


def test_every_metric_of_ours_is_on_the_dashboard(registered):
    """By name without the suffix of its samples."""
    asked = " ".join(expression for _, expression, _ in expressions())
    stems = {re.sub(r"_(total|created|bucket|sum|count)$", "", name) for name in registered}
    assert {stem for stem in stems if not re.search(rf"\b{stem}(_|\b)", asked)} <= NOT_SHOWN
