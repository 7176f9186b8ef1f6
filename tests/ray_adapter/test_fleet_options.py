"""What a fleet is made of, from a config file or a command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lengthwise.data.errors import InputError
from lengthwise.scheduler.ray_adapter import run_fleet
from lengthwise.scheduler.ray_adapter.application import make_options
from lengthwise.scheduler.serving.settings import ServerSettings, make_settings

EXAMPLE = Path(__file__).parents[2] / "examples" / "fleet.yaml"


def test_the_example_for_a_cluster_is_well_formed():
    (application,) = yaml.safe_load(EXAMPLE.read_text())["applications"]
    module, _, name = application["import_path"].partition(":")
    assert (module, name) == ("lengthwise.scheduler.ray_adapter.application", "build")
    options = make_options(application["args"])
    assert options.instances == 4
    assert make_settings(options.settings).router == "gain"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"model": "m"}, "model_id"),
        ({"model_id": "m", "model": "m", "instances": 0}, "instances"),
        ({"model_id": "m", "model": "m", "replicas": 2}, "replicas"),
        ({"model_id": "m", "model": "m", "settings": {"router": "best"}}, "router"),
    ],
)
def test_a_bad_option_is_named(values, key):
    with pytest.raises(InputError, match=key):
        make_options(values)


def test_without_ray_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(run_fleet, "NEEDED", ("no_such_module",))
    with pytest.raises(InputError, match=r"lengthwise\[fleet\]"):
        run_fleet.check_ray()


def test_a_command_line_becomes_the_engines_arguments(tmp_path):
    pytest.importorskip("vllm", reason="reads vLLM's own parser")
    options = run_fleet.laptop_options(
        "tiny",
        ServerSettings(predictor_dir=None, replay_table=str(tmp_path / "replay.json")),
        ["--max-num-seqs", "4", "--enforce-eager", "--port", "8009", "--api-key", "k"],
        instances=3,
        cache_dir=tmp_path,
    )
    assert options.model_id == "tiny"
    assert Path(options.model).is_dir()
    assert options.engine_kwargs["max_num_seqs"] == 4
    assert options.engine_kwargs["enforce_eager"] is True
    assert options.engine_kwargs["load_format"] == "dummy"
    assert options.engine_kwargs["logits_processors"] == [run_fleet.LOGITS_PROCESSOR]
    assert not {"port", "model", "served_model_name"} & options.engine_kwargs.keys()
    assert options.api_keys == ["k"]
    assert (options.instances, options.instances_per_node) == (3, 3)
    with pytest.raises(InputError, match="no-such-option"):
        run_fleet.laptop_options(
            "tiny", ServerSettings(), ["--no-such-option", "1"], instances=2, cache_dir=tmp_path
        )


def test_two_ways_of_several_engines_exclude_each_other():
    with pytest.raises(InputError, match="take one"):
        run_fleet.laptop_options(
            "tiny", ServerSettings(), ["--data-parallel-size", "2"], instances=2
        )
