"""`lengthwise serve`: what it would start, what it passes on to vLLM, what it refuses."""

import json
import socket

import pytest


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

    name = "lengthwise.scheduler.vllm_adapter.server.vllm_foreground.serve_forever"
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
    from lengthwise.scheduler.serving.live import LiveState, live_state, read_live, write_live

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
