"""The demo on a real model, without one: stages that are kept, prompts sent once, both verdicts."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from chat_stub import ChatStub, running
from typer.testing import CliRunner

from lengthwise.data.errors import InputError
from lengthwise.data.slo import Slo
from lengthwise.data.workload import WorkloadRequest
from lengthwise.training.bench.comparison.arms import parse_arms
from lengthwise.training.bench.comparison.bench_settings import BenchSettings
from lengthwise.training.bench.comparison.compare import compare
from lengthwise.training.bench.engines.client import BenchError
from lengthwise.training.bench.engines.generation import Generation
from lengthwise.training.bench.engines.servers import BenchServers, ReplayIds
from lengthwise.training.bench.results.report import write_run
from lengthwise.training.bench.runners.generated_runner import GeneratedRunner
from lengthwise.training.cli.app import app
from lengthwise.training.real_demo import real_demo
from lengthwise.training.real_demo.answered_twice import (
    CEILING,
    judged_prompts,
)
from lengthwise.training.real_demo.own_traffic import left_to_send, log_figures, send
from lengthwise.training.real_demo.real_demo import RealSettings, run_real_demo
from lengthwise.training.real_demo.real_page import PAGE_FILE, REPORT_FILE, show_report
from lengthwise.training.real_demo.real_report import OWN as OWN_ROW
from lengthwise.training.real_demo.real_report import lost_answers, real_report
from lengthwise.training.real_demo.real_site import RealSite
from lengthwise.training.real_demo.real_stages import Stages
from lengthwise.training.registry import models as registry
from lengthwise.training.workspace import Workspace

FIRST, OWN = "models:/output-length/1", "models:/output-length/2"


def silent(text: str) -> None:
    pass


def request(prompt: str) -> WorkloadRequest:
    return WorkloadRequest(0.0, 4, 9, Slo(e2e_s=30.0, slo_class="code"), prompt)


# -- stages -----------------------------------------------------------------------------------


def test_a_stage_is_done_once_for_the_same_settings(tmp_path):
    said, done = [], []
    stages = Stages(tmp_path / "stages", said.append)

    def work():
        done.append(1)
        return {"n": len(done)}

    assert stages.run("first", {"seed": 1, "pair": (1, 2)}, work)["result"] == {"n": 1}
    assert stages.run("first", {"seed": 1, "pair": (1, 2)}, work)["result"] == {"n": 1}
    assert "kept from" in said[-1]
    assert stages.run("first", {"seed": 2, "pair": (1, 2)}, work)["result"] == {"n": 2}


def test_a_stage_that_fails_is_not_kept(tmp_path):
    stages = Stages(tmp_path, silent)

    def fail():
        raise BenchError("no")

    with pytest.raises(BenchError):
        stages.run("first", {}, fail)
    assert not list(tmp_path.iterdir())


# -- traffic ----------------------------------------------------------------------------------


def write_log(folder: Path, answers: list[tuple[str, str]]) -> None:
    rows = [
        {"request_id": str(i), "status": status, "arrival_unix_s": float(i), "prompt": prompt,
         "prompt_tokens": 3, "output_tokens": 5 + i}
        for i, (prompt, status) in enumerate(answers)
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "requests-1.jsonl").write_text(text)


def test_prompts_are_sent_once_each_and_not_again(tmp_path):
    write_log(tmp_path, [("a", "finished"), ("b", "aborted"), ("c", "length")])
    figures = log_figures(tmp_path)
    assert (figures["answered"], figures["cut_at_max_tokens"]) == (2, 1)
    assert figures["mean_tokens"] == 6.0  # of 5 and 7
    wanted = [request(p) for p in "aabbcd"]
    assert [r.prompt for r in left_to_send(wanted, tmp_path)] == ["b", "d"]
    assert [r.prompt for r in left_to_send(wanted, tmp_path / "none")] == ["a", "b", "c", "d"]


def test_what_came_back_is_counted():
    requests = [request("a" * n) for n in (3, 9, 30)]
    with running(ChatStub(ttft_s=0.01, itl_s=0.001)) as stub:
        told = send(stub.url, "stub", requests, Generation(12, 0.0), slots=2)
        assert send(stub.url, "stub", [], Generation(), slots=2)["sent"] == 0
    assert (told["sent"], told["lost"]) == (3, 0)
    assert told["tokens_per_s"] > 0


def test_a_server_that_refuses_many_stops_the_demo():
    with (
        running(ChatStub(refused={"aa"})) as stub,
        pytest.raises(BenchError, match="1 of 2 prompts got no answer: HTTP 400"),
    ):
        send(stub.url, "stub", [request("aa"), request("b")], Generation(4), slots=2)


# -- commands ---------------------------------------------------------------------------------


def site_of(tmp_path: Path, code: str) -> RealSite:
    return RealSite(tmp_path, silent, (sys.executable, "-c", code))


def test_a_commands_last_line_is_its_document(tmp_path):
    site = site_of(tmp_path, "import sys, json; print('table'); print(json.dumps(sys.argv[1:]))")
    with pytest.raises(BenchError, match="without a document"):
        site.run("train", "--json")  # a list is no document
    site = site_of(tmp_path, "print('table'); print('{\"a\": 1}')")
    assert site.run("train") == {"a": 1}


def test_a_command_that_fails_is_an_error_and_a_refusal_is_an_answer(tmp_path):
    site = site_of(tmp_path, "import sys; print('{\"a\": 1}'); sys.exit(1)")
    assert site.run("promote", refusable=True) == {"a": 1}
    with pytest.raises(BenchError, match="`lengthwise promote` ended with status 1"):
        site.run("promote")
    broken = site_of(tmp_path, "import sys; sys.exit(2)")
    with pytest.raises(BenchError, match="status 2"):
        broken.run("promote", refusable=True)


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path):
    site = site_of(tmp_path, "import sys; print('no room'); sys.exit(3)")
    with (
        pytest.raises(BenchError, match="the server ended with status 3: no room"),
        site.serving("smollm2"),
    ):
        pass


# -- the whole --------------------------------------------------------------------------------


class ScriptedSite:
    """Gives the documents that the commands would, and a server that takes a version over."""

    def __init__(self, root: Path, url: str, promoted: bool) -> None:
        self.root, self.url, self.promoted = root, url, promoted
        self.given: list[tuple[str, ...]] = []

    def say(self, text: str) -> None:
        pass

    def run(self, *arguments: str, refusable: bool = False) -> dict:
        self.given.append(arguments)
        if arguments[0] == "bench":
            (self.root / "runs" / f"bench-{len(self.given)}").mkdir(parents=True)
        return {
            "train": {"model_uri": OWN if "--from-log" in arguments else FIRST},
            "calibrate": {"profile": "tiny-cpu"},
            "register": {},
            "promote": {"promoted": self.promoted, "reasons": ["worse"]},
            "bench": {"arms": []},
        }[arguments[0]]

    @contextmanager
    def serving(self, *arguments: str):
        self.given.append(("serve", *arguments))
        if "--request-log" in arguments:
            log = Path(arguments[arguments.index("--request-log") + 1])
            write_log(log, [("some prompt", "finished")])
        version = OWN if self.promoted else FIRST
        yield SimpleNamespace(
            url=self.url,
            status=lambda: {"predictor_version": version},
            wait_for_version=lambda label: 1.5,
        )


@pytest.fixture
def packaged(monkeypatch):
    monkeypatch.setattr(real_demo, "packaged_model", lambda *_: ("folder", ["--max-num-seqs", "4"]))
    monkeypatch.setattr(real_demo, "weights_digest", lambda folder: "ab" * 8)


@pytest.mark.parametrize(("promoted", "served"), [(True, OWN), (False, FIRST)])
def test_the_version_in_force_is_the_one_that_is_compared(tmp_path, packaged, promoted, served):
    settings = RealSettings(prompts=200, requests=20, twice=20, source="synthetic", max_tokens=5)
    workspace = Workspace(tmp_path)
    with running(ChatStub(ttft_s=0.001, itl_s=0.0)) as stub:
        site = ScriptedSite(tmp_path, stub.url, promoted)
        found = run_real_demo(settings, workspace=workspace, say=silent, site=site)
        prompts = [body["messages"][0]["content"] for body in stub.bodies]
    twice = found["stages"]["twice"]["result"]["temperatures"]
    assert [found["temperature"] for found in twice] == [0.0, 0.7]
    unseen = 4 * len(twice[0]["first"])
    assert 60 <= unseen <= 80  # the corpus has some twice
    learned, judged = prompts[:-unseen], prompts[-unseen:]
    assert len(learned) == len(set(learned)) <= 200
    assert len(learned) > 150
    assert sorted(judged) == sorted(4 * list(set(judged)))
    assert not set(judged) & set(learned)
    assert [given[0] for given in site.given] == [
        "train", "calibrate", "register", "serve", "train", "promote", "serve", "bench",
    ]  # fmt: skip
    bench = site.given[-1]
    assert bench[bench.index("--predictor") + 1] == served
    assert "--generated" in bench
    own = found["stages"]["learn"]["result"]
    assert own["served"] == own["predictor_in_force"] == served
    assert own["reload_s"] == (1.5 if promoted else None)


def test_a_second_run_does_nothing_anew_and_another_load_only_the_bench(tmp_path, packaged):
    settings = RealSettings(prompts=200, requests=20, twice=20, source="synthetic", max_tokens=5)
    workspace = Workspace(tmp_path)
    with running(ChatStub(ttft_s=0.001, itl_s=0.0)) as stub:
        site = ScriptedSite(tmp_path, stub.url, True)
        first = run_real_demo(settings, workspace=workspace, say=silent, site=site)
        given = len(site.given)
        assert run_real_demo(settings, workspace=workspace, say=silent, site=site) == first
        assert len(site.given) == given
        other = RealSettings(
            prompts=200, requests=20, twice=20, source="synthetic", max_tokens=5, load=2.0
        )
        run_real_demo(other, workspace=workspace, say=silent, site=site)
    assert [g[0] for g in site.given[given:]] == ["bench"]


def test_the_report_says_what_ran_and_what_is_modeled(workspace, predictor_dir, capsys):
    version = registry.register(predictor_dir, workspace=workspace).model_uri
    settings = RealSettings(requests=12, twice=20, source="synthetic", max_tokens=9)
    drawn = replace(real_demo.real_prompts("paper", "synthetic", "tiny-cpu"), split="test")
    generation = settings.generation
    with (
        running(ChatStub(ttft_s=0.001, itl_s=0.0)) as ours,
        running(ChatStub(ttft_s=0.001, itl_s=0.0)) as stock,
    ):
        servers = BenchServers(
            ours, stock, "stub", 64, ReplayIds.random(4), (), generation=generation
        )
        told = BenchSettings(parse_arms("sa:none"), load=1.0, requests=12, repeats=1)
        runner = GeneratedRunner(servers, generation)
        outcome = compare(drawn, told, runner, capacity_rps=500.0)
    directory = workspace.new_run_dir("bench")
    write_run(directory, outcome.result, outcome.records, outcome.queue)
    side = {"predictor": version, "attainment": 0.5, "coverage": 0.8, "mae": 9.0}
    metrics = {"tau": 0.1, "mae": 5.0, "baselines": {"class_quantiles": {"tau": 0.0, "mae": 6.0}}}
    learned = {
        "foreign": version, "served": version, "reload_s": None,
        "answers": {"sent": 3, "lost": 1, "answered": 2, "cut_at_max_tokens": 0,
                    "mean_tokens": 1.5, "tokens_per_s": None, "quartiles_tokens": [1.0, 2.0]},
        "trained": {"model_uri": version, "rows": {"train": 2}, "metrics": metrics},
        "decision": {
            "promoted": False, "reasons": ["worse"], "requests": 3, "difference_ci95": [-0.1, 0.0],
            "attainment_difference": -0.05, "champion": side, "challenger": side,
        },
    }  # fmt: skip
    unseen = judged_prompts(drawn, 20, 0)
    lengths = [len(request.prompt) % 9 + 1 for request in unseen]
    lost_one = {
        "temperature": 0.7, "first": [None, *lengths[1:]], "second": lengths, "lost": 1,
        "cut_at_max_tokens": 2,
    }  # fmt: skip
    stage = {"seconds": 1.0, "load_average": [0.5, None], "at": "now"}
    found = {
        "model": {"description": "a stub", "weights": "ab", "limits": {"--max-num-seqs": "4"}},
        "source": "synthetic",
        "settings": asdict(settings),
        "stages": {
            "calibrate": stage | {"result": {"profile": "tiny-cpu"}},
            "learn": stage | {"result": learned},
            "twice": stage | {"result": {"temperatures": [lost_one, {**lost_one, "lost": 0}]}},
            "bench": stage
            | {"result": {"document": json.loads(outcome.result.to_line()),
                          "directory": str(directory)}},
        },
    }  # fmt: skip
    report = real_report(found, workspace=workspace)
    show_report(report, workspace.root)
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1]) == report
    assert json.loads((workspace.root / REPORT_FILE).read_text()) == report
    assert lost_answers(report) == 2
    judged = report["measured"]["predictors"][0]
    assert judged["answers"] == len(unseen) - 1
    assert judged["rows"][CEILING]["mae"] == 0
    assert judged["rows"][OWN_ROW]["mae"] > 0
    page = (workspace.root / PAGE_FILE).read_text()
    for words in ("a stub", "synthetic", "refused (worse)", "modeled", "12 of 12", "stock"):
        assert words in printed, words
        assert words in page, words


def test_greedy_answers_are_asked_for_once():
    assert [g.temperature for g in RealSettings(temperature=0.0).ways_to_answer] == [0.0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"prompts": 60}, "prompts must be at least 200, got 60"),
        ({"twice": 3}, "twice must be at least 20, got 3"),
        ({"requests": 0}, "requests must be at least 1, got 0"),
        ({"load": -1.0}, "load must be above 0, got -1"),
        ({"workload": "nope"}, "no arena workload 'nope'"),
        ({"temperature": -1.0}, "temperature must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(given, says):
    with pytest.raises(InputError, match=says):
        RealSettings(**given)


def test_bad_settings_are_one_line_before_anything_is_made(workspace):
    ended = CliRunner().invoke(app, ["demo-real", "--prompts", "3"])
    assert ended.exit_code == 2
    assert "prompts must be at least 200, got 3" in ended.output
    assert not workspace.cache.exists()
