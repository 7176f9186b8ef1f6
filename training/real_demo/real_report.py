"""What `demo-real` found: one document, and its tables, each figure with what kind it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.predictor.fitting.metrics import kendall_tau, mae
from lengthwise.predictor.model import LengthPredictor
from lengthwise.training import console
from lengthwise.training.bench.results.provenance import describe_machine, utc_now
from lengthwise.training.bench.results.records import RequestRecord
from lengthwise.training.bench.results.report import read_run
from lengthwise.training.real_demo.own_traffic import JUDGED_SPLIT, real_prompts
from lengthwise.training.registry.models import resolve_predictor
from lengthwise.training.workspace import Workspace

REPORT_FILE = "demo-real.json"


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
        "stages": {
            name: {key: stage[key] for key in ("seconds", "load_average", "at")}
            for name, stage in stages.items()
        },
        "measured": {
            "answers": own["answers"],
            "predictor_on_the_log": _of_training(own["trained"]),
            "reload_s": own["reload_s"],
            "bench": {
                "arms": document["arms"],
                "against_stock": document["against_base"],
                "run": document["run"],
                "diagnostics": document["diagnostics"],
            },
            "predictors_on_the_bench": judged(found, records, workspace),
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


def judged(
    found: Mapping[str, Any], records: Mapping[str, Sequence[RequestRecord]], workspace: Workspace
) -> dict[str, Any]:
    """Both versions, and the class's mean of the log's answers, on the bench's answers.

    No version has seen these prompts; the truth is what stock vLLM's run of them made.
    """
    settings, stages = found["settings"], found["stages"]
    own = stages["learn"]["result"]
    profile = stages["calibrate"]["result"]["profile"]
    source = real_prompts(settings["workload"], settings["source"], profile)
    requests = replace(source, split=JUDGED_SPLIT).draw(settings["requests"], 1.0, settings["seed"])
    answers = [r for r in next(iter(records.values())) if r.ok]
    limit = int(settings["max_tokens"])
    prompts = [requests[r.index].prompt for r in answers]
    classes = [r.slo_class for r in answers]
    tokens = [requests[r.index].prompt_tokens for r in answers]
    true = np.array([r.output_tokens for r in answers], float)
    shown: dict[str, Any] = {"answers": len(answers)}
    for name, version in (("foreign", own["foreign"]), ("own", own["trained"]["model_uri"])):
        predictor = LengthPredictor.load(resolve_predictor(version, workspace=workspace).directory)
        said = predictor.predict(prompts, classes, tokens, limit).median()
        shown[name] = {"version": version, "tau": kendall_tau(true, said), "mae": mae(true, said)}
        of_class = [float(np.median(predictor.class_prior(c))) for c in classes]
        shown[f"{name}, class only"] = {
            "version": version,
            "tau": kendall_tau(true, of_class),
            "mae": mae(true, np.minimum(of_class, limit)),
        }
    return shown


def show_report(report: Mapping[str, Any], path: Path) -> None:
    """Write the document and print its tables; the document is the last line."""
    path.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    measured, modeled = report["measured"], report["modeled"]["promotion"]
    settings, answers = report["settings"], measured["answers"]
    print(f"\nModel: {report['model']['description']}; weights {report['model']['weights']}.")
    print(
        f"Prompts of {report['prompts_of']}; at most {settings['max_tokens']} tokens an answer, "
        f"temperature {settings['temperature']:g}; nothing about lengths forced or told."
    )
    console.print_table(
        "Stages", ["stage", "seconds", "load average before, after"],
        [[name, f"{s['seconds']:.0f}", " ".join(map(str, s["load_average"]))]
         for name, s in report["stages"].items()],
    )  # fmt: skip
    rows = [[k.replace("_", " "), _text(v)] for k, v in answers.items()]
    console.print_table("Answers that were learned from (measured)", ["", ""], rows)
    judged_rows = [
        [name, row["version"], f"{row['tau']:.3f}", f"{row['mae']:.1f}"]
        for name, row in measured["predictors_on_the_bench"].items()
        if isinstance(row, Mapping)
    ]
    console.print_table(
        f"Predictors on the bench's {measured['predictors_on_the_bench']['answers']} answers, "
        "prompts never seen (measured)",
        ["predictor", "version", "tau", "MAE, tokens"], judged_rows,
    )  # fmt: skip
    low, high = (100 * end for end in modeled["difference_ci95"])
    moved = "promoted" if modeled["promoted"] else f"refused: {'; '.join(modeled['reasons'])}"
    print(
        f"Promotion (modeled: the log replayed in the simulator, {modeled['requests']} requests): "
        f"{moved}; {100 * modeled['attainment_difference']:+.1f} points [{low:+.1f}, {high:+.1f}]."
    )
    if measured["reload_s"] is not None:
        print(f"The running server took it over in {measured['reload_s']:.1f} s (measured).")
    bench = measured["bench"]
    console.print_table(
        f"Bench on generated answers, {settings['requests']} requests at load "
        f"{settings['load']:g} (measured)",
        ["arm", "SLO met", "95 % interval", "lost", "cut", "mean TTFT s", "mean e2e s", "tokens/s"],
        [_arm_row(arm, bench["diagnostics"]) for arm in bench["arms"]],
    )
    for label, paired in bench["against_stock"].items():
        low, high = (100 * end for end in paired["difference_ci95"])
        print(
            f"{label} - {paired['base']} on the same requests: "
            f"{100 * paired['attainment_difference']:+.1f} points [{low:+.1f}, {high:+.1f}]."
        )
    for pair, same in bench["run"]["same_length"].items():
        print(f"Answers of one length, {pair}: {same}.")
    print(f"report: {report['page']} and {path}")
    console.print_json(report)


def lost_answers(report: Mapping[str, Any]) -> int:
    """Requests of the learning and of the bench that got no answer."""
    arms = report["measured"]["bench"]["arms"]
    return int(report["measured"]["answers"]["lost"]) + sum(int(arm["lost"]) for arm in arms)


def _of_training(trained: Mapping[str, Any]) -> dict[str, Any]:
    metrics = trained["metrics"]
    names = ("rows", "tau", "mae", "coverage", "pinball_gain")
    return {"rows": trained["rows"]} | {
        "test": {name: metrics.get(name) for name in names},
        "class_quantiles": {
            name: metrics["baselines"]["class_quantiles"].get(name) for name in names
        },
    }


def _arm_row(arm: Mapping[str, Any], diagnostics: Mapping[str, Any]) -> list[str]:
    label = arm["policy"] if arm["policy"] == "stock" else f"{arm['policy']}:{arm['lengths']}"
    low, high = (100 * end for end in arm["attainment_ci95"])
    return [
        label,
        f"{100 * arm['attainment']:.1f} %",
        f"{low:.1f} to {high:.1f}",
        str(arm["lost"]),
        str(diagnostics[label]["cut_at_max_tokens"]),
        f"{arm['mean_ttft_s']:.2f}",
        f"{arm['mean_e2e_s']:.2f}",
        f"{arm['output_tokens_per_s']:.0f}",
    ]


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    if value is None:
        return "-"
    return f"{value:.1f}" if isinstance(value, float) else str(value)
