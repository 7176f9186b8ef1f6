"""What `demo-real` found, as one document: each figure with what kind it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lengthwise.predictor.model import LengthPredictor
from lengthwise.training.bench.results.provenance import describe_machine, utc_now
from lengthwise.training.bench.results.report import objectives, read_run
from lengthwise.training.real_demo.answered_twice import judge, judged_prompts
from lengthwise.training.real_demo.own_traffic import real_prompts
from lengthwise.training.registry.models import resolve_predictor
from lengthwise.training.workspace import Workspace

OWN = "trained on this model's answers"


def real_report(found: Mapping[str, Any], *, workspace: Workspace) -> dict[str, Any]:
    """The document: the model, what was measured and what modelled, the sizes, the machine."""
    stages = found["stages"]
    own, bench = stages["learn"]["result"], stages["bench"]["result"]
    document = bench["document"]
    _, records, _ = read_run(Path(bench["directory"]))
    decision = own["decision"]
    return {
        "what": "lengthwise demo-real",
        "made": utc_now(),
        "model": found["model"],
        "prompts_of": found["source"],
        "settings": found["settings"],
        "machine": describe_machine(),
        "capacity_rps": document["run"]["capacity_rps"],
        "objectives": [f"{name} {asked}" for name, asked in objectives(records).items()],
        "stages": {
            name: {key: stage[key] for key in ("seconds", "load_average", "at")}
            for name, stage in stages.items()
        },
        "measured": {
            "answers": own["answers"],
            "answered_twice": stages["twice"]["result"]["temperatures"],
            "predictor_on_the_log": _of_training(own["trained"]),
            "reload_s": own["reload_s"],
            "bench": {
                "arms": document["arms"],
                "against_stock": document["against_base"],
                "run": document["run"],
                "diagnostics": document["diagnostics"],
            },
            "predictors": judged(found, workspace),
        },
        "modeled": {
            "promotion": {
                key: decision[key]
                for key in (
                    "promoted", "reasons", "requests", "attainment_difference", "difference_ci95",
                    "champion", "challenger",
                )
            },
        },
        "versions": {"foreign": own["foreign"], "own": own["trained"]["model_uri"],
                     "served": own["served"]},
        "page": str(Path(bench["directory"]) / "report.html"),
    }  # fmt: skip


def judged(found: Mapping[str, Any], workspace: Workspace) -> list[dict[str, Any]]:
    """Both versions on the answers to prompts that neither has seen, at each temperature."""
    settings, stages = found["settings"], found["stages"]
    own = stages["learn"]["result"]
    profile = stages["calibrate"]["result"]["profile"]
    source = real_prompts(settings["workload"], settings["source"], profile)
    requests = judged_prompts(source, settings["twice"], settings["seed"])
    loaded = {
        name: LengthPredictor.load(resolve_predictor(version, workspace=workspace).directory)
        for name, version in (
            (f"trained on {found['source']}'s answers", own["foreign"]),
            (OWN, own["trained"]["model_uri"]),
        )
    }
    limit = int(settings["max_tokens"])
    return [
        judge(requests, answers, loaded, loaded[OWN], limit)
        for answers in stages["twice"]["result"]["temperatures"]
    ]


def lost_answers(report: Mapping[str, Any]) -> int:
    """Requests of the learning, of the second answers and of the bench that got no answer."""
    measured = report["measured"]
    rest = [*measured["answered_twice"], *measured["bench"]["arms"]]
    return int(measured["answers"]["lost"]) + sum(int(one["lost"]) for one in rest)


def _of_training(trained: Mapping[str, Any]) -> dict[str, Any]:
    metrics = trained["metrics"]
    names = ("rows", "tau", "mae", "coverage", "pinball_gain")
    return {"rows": trained["rows"]} | {
        "test": {name: metrics.get(name) for name in names},
        "class_quantiles": {
            name: metrics["baselines"]["class_quantiles"].get(name) for name in names
        },
    }
