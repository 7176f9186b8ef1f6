"""`lengthwise demo-real`: a real model's own answers, from the first request to the comparison.

    train (foreign lengths) -> calibrate -> serve, answer, log -> train --from-log -> promote
        -> reload -> answer unseen prompts twice -> bench on generated answers -> report

Every step is a command an operator would give; each stage's outcome lies in a file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from lengthwise.data.arena.workloads import arena_workload
from lengthwise.data.errors import InputError
from lengthwise.predictor.features.reader_weights import PACKAGED, weights_digest
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.server.command_options import given_options
from lengthwise.training import console
from lengthwise.training.bench.engines.client import BenchError
from lengthwise.training.bench.engines.generation import Generation
from lengthwise.training.packaged_model import DESCRIPTION, packaged_model
from lengthwise.training.real_demo.answered_twice import answer_twice, judged_prompts
from lengthwise.training.real_demo.own_traffic import (
    left_to_send,
    log_figures,
    real_prompts,
    send,
)
from lengthwise.training.real_demo.real_site import RealSite
from lengthwise.training.real_demo.real_stages import Stages
from lengthwise.training.registry.model_names import DEFAULT_PREDICTOR
from lengthwise.training.workspace import Workspace

FEWEST_PROMPTS = 200  # a seventh of them calibrates, and train.pipeline.MIN_ROWS are needed
FEWEST_TWICE = 20
ARENA_SEED = 0  # of the split whose test side the arena draws from
RPS = 1.0  # only the order of the drawn requests is used where they are sent closed loop


@dataclass(frozen=True, slots=True)
class RealSettings:
    """What `demo-real` does: prompts to learn from, requests to compare on, how to answer.

    `twice` prompts are answered twice at temperature 0 and twice at `temperature`. `source` None
    is the workload's pack where it is, else the synthetic corpus.
    """

    prompts: int = 200
    twice: int = 40
    requests: int = 100
    max_tokens: int = 384
    temperature: float = 0.7
    load: float = 1.3
    arms: str = "sa:learned"
    workload: str = "paper"
    source: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prompts < FEWEST_PROMPTS:
            raise InputError(f"prompts must be at least {FEWEST_PROMPTS}, got {self.prompts}")
        if self.twice < FEWEST_TWICE:
            raise InputError(f"twice must be at least {FEWEST_TWICE}, got {self.twice}")
        if self.requests < 1:
            raise InputError(f"requests must be at least 1, got {self.requests}")
        if not self.load > 0:
            raise InputError(f"load must be above 0, got {self.load:g}")
        arena_workload(self.workload)
        Generation(self.max_tokens, self.temperature, self.seed)

    def of(self, *names: str) -> dict[str, Any]:
        """Some of the settings, by name."""
        return {name: value for name, value in asdict(self).items() if name in names}

    @property
    def generation(self) -> Generation:
        """How answers are drawn."""
        return Generation(self.max_tokens, self.temperature, self.seed)

    @property
    def ways_to_answer(self) -> list[Generation]:
        """Greedily, and as everywhere else where that is another way."""
        greedy = replace(self.generation, temperature=0.0)
        return [greedy] if self.temperature == 0 else [greedy, self.generation]


def run_real_demo(
    settings: RealSettings,
    *,
    workspace: Workspace,
    say: Callable[[str], None],
    site: RealSite | None = None,
) -> dict[str, Any]:
    """Go through the stages, or on where they were left; every stage's outcome by its name.

    Args:
        settings: sizes and seeds.
        workspace: `$LENGTHWISE_HOME` of this process, and the demo's own.
        say: told one line at every stage.
        site: gives the commands; for tests.

    Raises:
        InputError: the packaged model is not installed, or the settings cannot be served.
        BenchError: a stage failed.
    """
    site = site or RealSite(workspace.root, say)
    stages = Stages(workspace.root / "stages", say)
    source = settings.source or arena_workload(settings.workload).default_source
    folder, vllm_args = packaged_model(PACKAGED, [])
    model = {"description": DESCRIPTION, "weights": weights_digest(Path(folder))}
    limits = given_options(vllm_args)
    upstream = settings.of("seed", "workload") | {"source": source, "limits": limits, **model}
    given = ["--source", source] if settings.source else []

    def foreign() -> dict[str, Any]:
        # the arena judges on the test side of this split
        return site.run("train", "--pack", source, "--seed", str(ARENA_SEED), "--register",
                        "--no-decision", "--json")  # fmt: skip

    def calibrated() -> dict[str, Any]:
        return site.run("calibrate", "--model", PACKAGED, "--workload", settings.workload,
                        *given, "--short", "--json")  # fmt: skip

    first = stages.run("foreign", upstream, foreign)
    engine = stages.run("calibrate", upstream, calibrated)
    profile = str(engine["result"]["profile"])
    learning = upstream | settings.of("prompts", "max_tokens", "temperature")
    name = sha256(repr(sorted(learning.items())).encode()).hexdigest()[:8]
    log = workspace.root / f"log-{name}"

    def learned() -> dict[str, Any]:
        return learn(settings, site, first["result"]["model_uri"], profile, log)

    own = stages.run("learn", learning, learned)

    def twice() -> dict[str, Any]:
        return {"temperatures": answers_twice(settings, site, profile)}

    asked_twice = upstream | settings.of("max_tokens", "temperature", "twice")
    again = stages.run("twice", asked_twice, twice)
    compared = learning | settings.of("requests", "load", "arms")
    predictor = str(own["result"]["served"])

    def benched() -> dict[str, Any]:
        before = set(workspace.runs.glob("bench-*"))
        result = site.run(
            "bench", "--model", PACKAGED, "--generated", "--workload", settings.workload, *given,
            "--load", f"{settings.load:g}", "--requests", str(settings.requests), "--repeats", "1",
            "--arms", settings.arms, "--predictor", predictor, "--profile", profile,
            "--max-tokens", str(settings.max_tokens), "--temperature", f"{settings.temperature:g}",
            "--seed", str(settings.seed),
        )  # fmt: skip
        made = sorted(set(workspace.runs.glob("bench-*")) - before)
        if not made:
            raise BenchError("`lengthwise bench` left no run")
        return {"document": result, "directory": str(made[-1])}

    bench = stages.run("bench", compared, benched)
    return {
        "model": model | {"limits": limits},
        "source": source,
        "settings": asdict(settings),
        "stages": {"foreign": first, "calibrate": engine, "learn": own, "twice": again,
                   "bench": bench},
    }  # fmt: skip


def learn(
    settings: RealSettings, site: RealSite, version: str, profile: str, log: Path
) -> dict[str, Any]:
    """Serve with a version that knows other models, answer, train on the log, promote, reload.

    `served` in the result is the version in force at the end: the new one, if it was promoted.
    """
    site.run("register", version, "--alias", "champion", "--json")
    drawn = real_prompts(settings.workload, settings.source, profile).draw(
        settings.prompts, RPS, settings.seed
    )
    slots = load_profile(profile).capacity.max_num_seqs
    arguments = [
        PACKAGED, "--predictor", DEFAULT_PREDICTOR, "--profile", profile,
        "--request-log", str(log), "--log-prompts", "--poll-s", "2",
    ]  # fmt: skip
    with site.serving(*arguments) as server:
        todo = left_to_send(drawn, log)
        site.say(
            f"{len(todo)} of {len(drawn)} prompts to answer: the others repeat, or were before"
        )
        with console.progress() as steps:
            steps.step("answering", len(todo))
            answers = send(
                server.url, PACKAGED, todo, settings.generation, slots=slots, on_done=steps.advance
            )
        # its prompts are one side of the arena's split: they are split by another seed
        trained = site.run("train", "--from-log", str(log), "--seed", str(ARENA_SEED + 1),
                           "--alias", "challenger", "--no-decision", "--json")  # fmt: skip
        decision = site.run(
            "promote", "--from-log", str(log), "--champion", version,
            "--challenger", str(trained["model_uri"]), "--json", refusable=True,
        )  # fmt: skip
        served, reload_s = version, None
        if decision["promoted"]:
            served = str(trained["model_uri"])
            reload_s = server.wait_for_version(served)
            site.say(f"the server took {served} over {reload_s:.1f} s after the promotion")
        else:
            site.say(f"{trained['model_uri']} was refused: {'; '.join(decision['reasons'])}")
        status = server.status()
    return {
        "foreign": version,
        "answers": answers | log_figures(log),
        "trained": trained,
        "decision": decision,
        "reload_s": reload_s,
        "served": served,
        "predictor_in_force": status.get("predictor_version"),
        "log": str(log),
    }


def answers_twice(settings: RealSettings, site: RealSite, profile: str) -> list[dict[str, Any]]:
    """Serve in arrival order, without a predictor, and have unseen prompts answered twice."""
    source = real_prompts(settings.workload, settings.source, profile)
    requests = judged_prompts(source, settings.twice, settings.seed)
    slots = load_profile(profile).capacity.max_num_seqs
    ways = settings.ways_to_answer
    arguments = [PACKAGED, "--predictor", "none", "--policy", "fcfs", "--profile", profile]
    with site.serving(*arguments) as server, console.progress() as steps:
        steps.step("answering twice", 2 * len(ways) * len(requests))
        return answer_twice(
            server.url, PACKAGED, requests, ways, slots=slots, on_done=steps.advance
        )
