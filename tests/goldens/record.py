"""Goldens: what the planner, the simulator, a predictor and the middleware answer, to the bit.

``python tests/goldens/record.py [PART ...]`` writes ``PART.npz`` beside this file and, once,
``artifact.tar.gz``: a predictor trained on the synthetic corpus, as today's version stores it.
``check.py`` computes the same again and compares. A change on purpose records its part anew, and
its commit says why. Times that a plan took are left out; nothing else is. The figures hold for
one machine and one set of libraries.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.data.arena.workloads import arena_workload, build_workload
from lengthwise.data.locations import pack_path
from lengthwise.data.sources.load import load_table
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.splits import split_table
from lengthwise.predictor.fitting.fit import fit_predictor
from lengthwise.predictor.model import LengthPredictor
from lengthwise.scheduler.guards.admission import AdmissionControl, AdmissionRule
from lengthwise.scheduler.guards.fairness import TenantFairness
from lengthwise.scheduler.policies.make import POLICIES, make_policy
from lengthwise.scheduler.problem import Capacity, Problem, RequestArrays
from lengthwise.scheduler.profile import load_profile
from lengthwise.scheduler.serving.api.api_metrics import api_metrics
from lengthwise.scheduler.serving.api.predicting.prediction import PredictionService
from lengthwise.scheduler.serving.settings import make_settings
from lengthwise.scheduler.simulator.run import simulate
from lengthwise.scheduler.simulator.sim_workload import SimWorkload
from lengthwise.scheduler.step_time import StepTimeModel
from lengthwise.scheduler.vllm_adapter.api.vllm_middleware import LengthwiseMiddleware

HERE = Path(__file__).parent
ARTIFACT = HERE / "artifact.tar.gz"
LEVELS = np.array((0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99))
SPREAD = np.linspace(-1.6, 2.3, len(LEVELS))
# requests/s the tiny-cpu profile completed when the goldens were first recorded
CAPACITY_RPS = {"paper": 7.6, "mixed": 9.0, "tails": 5.0}
SA_ITERATIONS = 150

Arrays = dict[str, np.ndarray]


# -- plans ------------------------------------------------------------------------------------


def drawn_rows(rng: np.random.Generator, n: int, now_s: float) -> RequestArrays:
    """Requests of all kinds: with each objective, with several, with none."""
    centre = rng.lognormal(4.0, 1.0, n)
    spread = rng.choice([0.0, 0.5], n)
    kind = rng.integers(0, 4, n)
    return RequestArrays.build(
        np.maximum(1.0, centre[:, None] * np.exp(spread[:, None] * SPREAD)),
        rng.uniform(0.0, now_s, n),
        prompt_tokens=rng.integers(1, 700, n),
        ttft_s=np.where(kind == 0, rng.uniform(0.5, 8.0, n), np.inf),
        tpot_s=np.where(kind == 0, rng.choice([0.003, 0.05], n), np.inf),
        e2e_s=np.where((kind == 1) | (kind == 2), rng.uniform(1.0, 30.0, n), np.inf),
        weight=rng.choice([1.0, 2.0], n),
        class_id=kind,
    )


def drawn_problem(seed: int) -> Problem:
    """A queue of up to 60, up to 12 running, on a small engine or a larger one."""
    rng = np.random.default_rng(seed)
    running = drawn_rows(rng, int(rng.integers(0, 13)), 5.0)
    generated = np.floor(rng.uniform(0, 200, len(running)))
    running = replace(
        running,
        generated_tokens=generated,
        prefill_left_tokens=np.where(generated == 0, running.prompt_tokens, 0.0),
        first_token_s=np.where(generated == 0, np.nan, running.arrival_s + 0.1),
    )
    seqs = max(len(running), int(rng.choice([1, 4, 16])))
    return Problem(
        now_s=5.0,
        levels=LEVELS,
        waiting=drawn_rows(rng, int(rng.integers(0, 61)), 5.0),
        running=running,
        capacity=Capacity(seqs, int(rng.choice([4_000, 20_000])), int(rng.choice([64, 512]))),
        step_time=StepTimeModel(2e-3, 1e-3, 2e-5, 3e-4, 2e-8),
        max_wait_s=float(rng.choice([3.0, 60.0])),
        arrival_rate_rps=float(rng.choice([0.0, 5.0])),
    )


def fixed_policy(name: str, seed: int) -> Any:
    """The policy with a fixed amount of search, so that its plans know no clock."""
    params = {"iterations": SA_ITERATIONS} if name == "sa" else {}
    return make_policy(name, budget_s=None, seed=seed, **params)


def plans() -> Arrays:
    """The plans of 200 drawn problems by every policy."""
    out: Arrays = {}
    problems = [drawn_problem(seed) for seed in range(200)]
    out["waiting"] = np.array([len(problem.waiting) for problem in problems], np.int16)
    for name in POLICIES:
        made = [fixed_policy(name, seed)(problem) for seed, problem in enumerate(problems)]
        out[f"{name}/order"] = np.concatenate([plan.order for plan in made]).astype(np.int16)
        out[f"{name}/preempt"] = np.concatenate(
            [np.append(plan.preempt, -1) for plan in made]
        ).astype(np.int16)
        out[f"{name}/max_running"] = np.array([plan.max_running or -1 for plan in made], np.int16)
        out[f"{name}/cost"] = np.array([plan.cost for plan in made])
        out[f"{name}/start_cost"] = np.array([plan.start_cost for plan in made])
        out[f"{name}/evaluations"] = np.array([plan.evaluations for plan in made], np.int32)
    return out


# -- simulated runs ---------------------------------------------------------------------------


def drawn_workload(name: str, load: float, seed: int, source: str, known: str) -> SimWorkload:
    """300 requests of an arena workload; ``known`` is what a policy sees of their lengths."""
    n = 300
    requests = build_workload(name, load_table(source), n, load * CAPACITY_RPS[name], seed)

    def limits(objective: str) -> np.ndarray:
        values = [getattr(request.slo, objective) for request in requests]
        return np.array([np.inf if value is None else value for value in values])

    classes = sorted({request.slo.slo_class for request in requests})
    output = np.minimum([request.output_tokens for request in requests], 4096).astype(np.int64)
    rng = np.random.default_rng(seed)
    centre, spread = output.astype(float), 0.0
    if known == "blurred":
        centre, spread = centre * rng.lognormal(0.0, 0.5, n), 0.5
    return SimWorkload(
        arrival_s=np.array([request.arrival_s for request in requests]),
        prompt_tokens=np.array([request.prompt_tokens for request in requests], np.int64),
        output_tokens=output,
        ttft_s=limits("ttft_s"),
        tpot_s=limits("tpot_s"),
        e2e_s=limits("e2e_s"),
        weight=np.ones(n),
        class_id=np.array([classes.index(r.slo.slo_class) for r in requests], np.int64),
        quantiles=np.maximum(1.0, centre[:, None] * np.exp(spread * SPREAD)),
        levels=LEVELS,
        tenant_id=rng.choice(3, n, p=[0.6, 0.3, 0.1]),
    )


# workload, load, policy, known lengths, source ("" for the workload's pack), what stands around
RUNS = (
    ("paper", 0.6, "sa", "blurred", "synthetic", ""),
    ("paper", 1.1, "sa", "oracle", "synthetic", ""),
    ("paper", 2.0, "sa", "blurred", "synthetic", ""),
    ("mixed", 0.9, "sa", "oracle", "synthetic", ""),
    ("mixed", 1.4, "sa", "blurred", "synthetic", ""),
    ("mixed", 1.4, "sa", "blurred", "synthetic", "fairness"),
    ("mixed", 2.0, "sa", "blurred", "synthetic", "shed"),
    ("mixed", 2.0, "feasible-edf", "oracle", "synthetic", "downgrade"),
    ("tails", 1.4, "sa", "blurred", "synthetic", ""),
    ("paper", 1.4, "fcfs", "oracle", "synthetic", ""),
    ("paper", 1.4, "priority", "oracle", "synthetic", ""),
    ("mixed", 1.4, "sjf", "blurred", "synthetic", ""),
    ("mixed", 1.4, "edf", "blurred", "synthetic", ""),
    ("tails", 1.4, "llf", "blurred", "synthetic", ""),
    ("paper", 1.4, "feasible-sjf", "blurred", "synthetic", ""),
    ("tails", 1.4, "hrrn", "blurred", "synthetic", ""),
    ("paper", 1.4, "sa-paper", "oracle", "synthetic", ""),
    ("paper", 2.0, "sa", "blurred", "", ""),
    ("mixed", 1.4, "sa", "oracle", "", ""),
    ("tails", 1.4, "sa", "blurred", "", ""),
)


def runs() -> Arrays:
    """The outcomes of 20 simulated runs; those over packs only where the packs are."""
    out: Arrays = {}
    profile = load_profile("tiny-cpu")
    for index, (name, load, policy, known, source, around) in enumerate(RUNS):
        where = source or arena_workload(name).source
        if not source and pack_path(where) is None:
            continue
        workload = drawn_workload(name, load, index, where, known)
        options: dict[str, Any] = {}
        if around == "fairness":
            options["fairness"] = TenantFairness()
        elif around:
            options["admission"] = AdmissionControl(AdmissionRule(around, threshold=0.2))
            options["admission_policy"] = fixed_policy(policy, index)
        result = simulate(workload, fixed_policy(policy, index), profile, **options)
        key = f"{index:02d} {name} {load} {policy} {known} {where} {around}".strip()
        out[f"{key}/finish_s"] = result.finish_s
        out[f"{key}/first_token_s"] = result.first_token_s
        out[f"{key}/admitted_s"] = result.admitted_s
        out[f"{key}/met"] = result.met(workload)
        out[f"{key}/counts"] = np.array(
            [result.preemptions, result.yields, result.steps, result.prefilled_tokens,
             result.kv_peak_tokens, len(result.plan_s)]
        )  # fmt: skip
        out[f"{key}/queue_len"] = np.array(result.queue_len, np.float64).reshape(-1, 2)
        out[f"{key}/actions"] = np.array([action[0] for action in result.actions], "U1")
    return out


# -- predictions ------------------------------------------------------------------------------


def small_predictor() -> LengthPredictor:
    """Trained on 3,000 rows of the synthetic corpus, with few and short trees."""
    parts = split_table(synthetic_table(3000, seed=0))
    return fit_predictor(
        parts["train"], parts["calibration"], seed=3, n_estimators=40, learning_rate=0.15,
        text_params={"bits": 11, "components": 8},
    )  # fmt: skip


def store_artifact() -> None:
    """Pack a predictor directory, once: later versions must read what this one wrote."""
    with tempfile.TemporaryDirectory() as folder:
        small_predictor().save(Path(folder) / "predictor")
        with tarfile.open(ARTIFACT, "w:gz") as archive:
            archive.add(Path(folder) / "predictor", arcname="predictor")


def stored_predictor() -> LengthPredictor:
    """The predictor that lies beside this file."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(ARTIFACT) as archive:
            archive.extractall(folder, filter="data")
        return LengthPredictor.load(Path(folder) / "predictor")


def predictions() -> Arrays:
    """Quantiles of 500 prompts by the stored artifact, and by one trained now."""
    table = synthetic_table(500, seed=1)
    asked = (
        [prompt if i % 20 else None for i, prompt in enumerate(table["prompt"])],
        [name if i % 7 else None for i, name in enumerate(table["slo_class"])],
        [int(tokens) if i % 5 else None for i, tokens in enumerate(table["prompt_tokens"])],
    )
    stored, trained = stored_predictor(), small_predictor()
    rows = stored.features(*asked)
    known = stored.predict(*asked)
    generated = np.random.default_rng(0).integers(0, 400, len(table))
    return {
        "features_sha256": digest(rows),
        "stored/quantiles": known.quantiles,
        "stored/capped": stored.predict(*asked, max_tokens=128).quantiles,
        "stored/mean": known.mean(),
        "stored/cdf": known.cdf(np.full(len(table), 100.0)),
        "stored/remaining_mean": known.remaining(generated).mean(),
        "stored/features_quantiles_sha256": digest(
            stored.predict_features(rows[1::20], asked[1][1::20]).quantiles
        ),
        "trained/quantiles": trained.predict(*asked).quantiles,
    }


# -- bodies -----------------------------------------------------------------------------------

SLO_TABLE = {"chat": {"ttft_ms": 3000.0, "tpot_ms": 50.0}, "code": {"e2e_ms": 20000.0}}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


def drawn_request(index: int) -> tuple[str, dict[str, Any], dict[str, str]]:
    """Path, body and headers of a request: plain, odd, and some that are refused."""
    rng = np.random.default_rng(index)
    prompt = str(synthetic_table(60, seed=2)["prompt"].iloc[index])
    xargs: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if index % 2:
        xargs["slo_class"] = str(rng.choice(["chat", "code", "other"]))
    if index % 3 == 0:
        xargs["slo_e2e_ms"] = float(rng.integers(500, 60_000))
    if index % 5 == 0:
        headers["x-slo-ttft-ms"] = str(int(rng.integers(100, 9_000)))
    if index % 7 == 0:
        headers["x-llm-d-slo-tpot-ms"] = "40"
    if index % 6 == 0:
        xargs["tenant"] = f"team-{index % 4}"
    if index % 9 == 0:
        xargs["osl"] = int(rng.integers(1, 900))
    if index % 11 == 0:
        xargs |= {"pred_quantiles": [1.0], "lw_text_id": "forged", "mine": index}
    if index == 13:
        xargs["slo_ttft_ms"] = "soon"  # refused
    if index == 17:
        xargs["osl"] = "many"  # refused
    body: dict[str, Any] = {"model": "tiny", "stream": index % 4 == 0}
    if index % 8 in (1, 2, 3):
        path = CHAT
        body["messages"] = [
            {"role": "system", "content": "Answer briefly."},
            {"role": "user", "content": [{"type": "text", "text": prompt}]},
        ]
    else:
        path = COMPLETIONS
        body["prompt"] = [prompt, prompt[: len(prompt) // 2]] if index % 10 == 4 else prompt
        if index % 10 == 6:
            body["prompt"] = [11, 12, 13]
    if index % 4 == 3:
        body["max_tokens"] = int(rng.integers(1, 300))
    if xargs:
        body["vllm_xargs"] = xargs
    return path, body, headers


class EngineDouble:
    """Answers admission questions in turn, and keeps them."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []

    async def call_utility_async(self, method: str, *args: Any) -> dict[str, Any]:
        if not isinstance(args[0], dict):
            return {}  # that a request has ended
        question = {key: value for key, value in args[0].items() if key != "deadline_unix_s"}
        self.asked.append({"method": method} | question)
        verdicts = ({"action": "admit"}, {"action": "downgrade"},
                    {"action": "shed", "retry_after_s": 3.5})  # fmt: skip
        return dict(verdicts[len(self.asked) % 3])


class _Bag:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


async def _ask(middleware: Any, app: Any, request: tuple[str, dict[str, Any], dict[str, str]]):
    path, body, headers = request
    raw = json.dumps(body).encode()
    scope = {
        "type": "http", "method": "POST", "path": path, "root_path": "", "app": app,
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": raw, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await middleware(scope, receive, send)
    return sent


def bodies() -> Arrays:
    """What the middleware forwards of 50 requests and tells their sequences, or answers itself;
    with and without a desk."""
    requests = [drawn_request(index) for index in range(50)]
    out: Arrays = {}
    predictor = stored_predictor()
    for label, lengths, more in (
        ("learned", "learned", {"log_prompts": True}),
        ("class", "class", {}),
        ("admission", "learned", {"admission": {"mode": "shed", "timeout_ms": 5000}}),
    ):
        with tempfile.TemporaryDirectory() as log:
            more = more | ({"request_log": log} if label == "learned" else {})
            settings = make_settings({"slo_table": SLO_TABLE, "lengths": lengths} | more)
            service = PredictionService(settings, api_metrics(), predictor, inline=True)
            forwarded, told, answers, asked = _served(requests, settings, service)
        out[f"{label}/forwarded"] = np.array([hashlib.sha256(b).hexdigest() for b in forwarded])
        out[f"{label}/told"] = as_text(told)
        out[f"{label}/answers"] = as_text(answers)
        out[f"{label}/asked"] = as_text(asked)
    return out


def _served(requests: list[Any], settings: Any, service: PredictionService) -> tuple[Any, ...]:
    """Bodies as forwarded, arguments of the sequences, answers, and the questions asked."""
    forwarded: list[bytes] = []
    told: list[Any] = []
    engine = EngineDouble()
    client = _Bag(engine_core=engine, generate=lambda prompt, params, name: told.append(params))
    app = _Bag(state=_Bag(engine_client=client))

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        forwarded.append((await receive())["body"])
        body = json.loads(forwarded[-1])
        prompt = body.get("prompt")
        many = isinstance(prompt, list) and isinstance(prompt[0], str)
        for _ in prompt if many else [prompt]:
            extra, most = body.get("vllm_xargs"), body.get("max_tokens")
            client.generate({}, _Bag(extra_args=extra, max_tokens=most), "id")
        await send({"type": "http.response.start", "status": 200, "headers": []})

    middleware = LengthwiseMiddleware(inner, settings, service)
    answers = []
    for request in requests:
        sent = asyncio.run(_ask(middleware, app, request))
        status = sent[0]["status"]
        answers.append([status] if status == 200 else [status, sent[1]["body"].decode()])
    if middleware.front.texts is not None:
        middleware.front.texts.close()
    drawn = ("lw_features", "lw_text_id", "lw_whole", "lw_seal")  # long, or another each time
    shown = [{k: v for k, v in one.extra_args.items() if k not in drawn} for one in told]
    for question in engine.asked:
        question.get("xargs", {}).pop("lw_seal", None)
    return forwarded, shown, answers, engine.asked


# -- store and report -------------------------------------------------------------------------


def as_text(value: Any) -> np.ndarray:
    """A JSON document as an array of bytes, which a difference can be read from."""
    return np.frombuffer(json.dumps(value, indent=0).encode(), np.uint8)


def digest(array: np.ndarray) -> np.ndarray:
    """The SHA-256 of an array's values and shape."""
    whole = hashlib.sha256(np.ascontiguousarray(array).tobytes() + repr(array.shape).encode())
    return np.array(whole.hexdigest())


PARTS: dict[str, Callable[[], Arrays]] = {
    "plans": plans,
    "runs": runs,
    "predictions": predictions,
    "bodies": bodies,
}


def main(names: list[str]) -> None:
    """Record the parts named, all of them without a name."""
    if not ARTIFACT.exists():
        store_artifact()
    for name in names or PARTS:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **PARTS[name]())
        (HERE / f"{name}.npz").write_bytes(buffer.getvalue())
        print(f"{name}: {len(buffer.getvalue())} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
