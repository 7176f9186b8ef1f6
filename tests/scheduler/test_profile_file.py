"""A profile file that a person wrote: what is wrong in it is named with its value and the rule."""

from __future__ import annotations

import json

import pytest

from lengthwise.data.errors import InputError
from lengthwise.scheduler.profile import load_profile

GOOD = {
    "name": "mine",
    "provenance": "by hand",
    "step_time": {
        "base_s": 0.01, "prefill_step_s": 0.0, "prefill_token_s": 1e-5,
        "decode_seq_s": 1e-4, "context_token_s": 0.0,
    },
    "capacity": {"max_num_seqs": 8, "kv_tokens": 9999, "max_num_batched_tokens": 512},
}  # fmt: skip

CAPACITY, STEP = GOOD["capacity"], GOOD["step_time"]


def written(tmp_path, profile):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(profile))
    return path


def test_a_record_of_its_own_keys_is_a_profile(tmp_path):
    profile = load_profile(written(tmp_path, GOOD | {"calibration": {}, "measured_rps": 3}))
    assert (profile.capacity.max_num_seqs, profile.capacity_scale) == (8, 1.0)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": None, "provenance": 3}, None),
        ({"capacity": {"max_num_seqs": 8}}, "capacity lacks kv_tokens, max_num_batched_tokens$"),
        ({"capacity": None}, "capacity must be an object, got None"),
        ({"capacity": {**CAPACITY, "max_num_seqs": 8.5}}, "capacity.max_num_seqs .* got 8.5"),
        ({"capacity": {**CAPACITY, "max_num_seqs": "8"}}, "capacity.max_num_seqs .* got '8'"),
        ({"capacity": {**CAPACITY, "max_num_seqs": True}}, "got True"),
        ({"capacity": {**CAPACITY, "kv_tokens": 10**30}}, "capacity.kv_tokens must be"),
        ({"capacity": {**CAPACITY, "kv_tokens": 0}}, "kv_tokens must be at least 1, got 0"),
        ({"capacity": {**CAPACITY, "max_num_sqs": 8}}, "capacity has no 'max_num_sqs'; it has"),
        ({"step_time": {**STEP, "base_s": "x"}}, "step_time.base_s .* got 'x'"),
        ({"step_time": {**STEP, "base_s": float("nan")}}, "step_time.base_s .* got nan"),
        ({"step_time": {**STEP, "base_s": -1}}, "base_s must be finite and not negative"),
        ({"step_time": {"base_s": 1}}, "step_time lacks prefill_step_s, prefill_token_s"),
        ({"step_time": []}, "step_time must be an object"),
        ({"capacity_scale": -1}, "capacity_scale must be a number above 0, got -1"),
        ({"capacity_scale": 0}, "capacity_scale must be a number above 0, got 0"),
        ({"capacity_scale": "x"}, "capacity_scale .* got 'x'"),
        ({"capacity_scale": None}, "capacity_scale .* got None"),
        ({"saturated_tokens_per_s": "fast"}, "saturated_tokens_per_s .* got 'fast'"),
        ({"scale": "cpu"}, "scale must be one of"),
        ({"speculation": True}, "Speculation lacks accepted_tokens$"),
        ({"speculation": {"accepted_tokens": 5, "draft_tokens": 10**30}}, "draft_tokens .* 10000"),
        ({"prefix_cache": {"block_tokens": 10**30}}, "block_tokens .* to 1000000, got 10000"),
        ({"prefix_cache": "x" * 5000}, "PrefixCache must be .{50,100}$"),
        ({"prefix_cache": {"a\n" * 5000: 1}}, "PrefixCache has no .{50,100}$"),
        ({"prefix_cach": True}, "has 'prefix_cach', which must be 'prefix_cache'"),
        ({"capacity_scal": 2.0}, "has 'capacity_scal', which must be 'capacity_scale'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_in_one_line(tmp_path, changes, says):
    path = written(tmp_path, GOOD | changes)
    if says is None:
        load_profile(path)
        return
    with pytest.raises(InputError, match=f"p.json is not an engine profile: .*{says}") as caught:
        load_profile(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["name", "step_time", "capacity", "provenance"])
def test_what_is_needed_is_named(tmp_path, name):
    with pytest.raises(InputError, match=f"p.json is not an engine profile: needs {name}$"):
        load_profile(written(tmp_path, {k: v for k, v in GOOD.items() if k != name}))
