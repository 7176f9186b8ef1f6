from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.data.errors import InputError
from lengthwise.data.slo import SLO_LIMIT_MS, Slo, SloTable, parse_slo

TABLE = SloTable.from_dict(
    {"chat": {"ttft_ms": 3000, "tpot_ms": 50}, "code": {"e2e_ms": 20_000, "weight": 2}}
)
EMPTY = SloTable({})


def test_body_wins_over_headers_over_llm_d_over_table():
    headers = {
        "X-SLO-Class": "chat",
        "x-slo-ttft-ms": "700",
        "X-LLM-D-SLO-TTFT-MS": "800",
        "x-llm-d-slo-e2e-ms": "9000",
    }
    slo = parse_slo({"slo_ttft_ms": 600}, headers, TABLE)
    assert slo == Slo(ttft_s=0.6, tpot_s=0.05, e2e_s=9.0, slo_class="chat")
    assert parse_slo({}, headers, TABLE).ttft_s == 0.7
    del headers["x-slo-ttft-ms"]
    assert parse_slo(None, headers, TABLE).ttft_s == 0.8


def test_no_objective_is_best_effort_and_always_met():
    slo = parse_slo({}, {}, TABLE)
    assert slo.is_best_effort
    assert slo.slo_class == "default"
    assert slo.met(math.nan, math.nan, 1e9)


def test_met_needs_every_given_objective():
    slo = Slo(ttft_s=1.0, tpot_s=0.05)
    assert slo.met(1.0, 0.05, 1e9)
    assert not slo.met(1.001, 0.01, 1.0)
    assert not slo.met(0.1, 0.051, 1.0)
    assert not slo.met(math.nan, 0.01, 1.0)


@pytest.mark.parametrize(
    "value",
    [math.nan, True, "fast", "nan", "inf", "5 s", "٥٠٠", [1], {}],
)
@pytest.mark.parametrize("key", ["slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms"])
def test_a_bad_value_names_key_value_and_rule(key, value):
    with pytest.raises(InputError, match=f"{key} must be a number of milliseconds"):
        parse_slo({key: value}, {}, EMPTY)


@pytest.mark.parametrize(
    ("value", "ms"),
    [
        (0, 1.0),
        ("0", 1.0),
        (-5, 1.0),
        ("-1e999", 1.0),
        (-(10**400), 1.0),
        (-math.inf, 1.0),
        (0.999, 1.0),
        (1.001, 1.001),
        (86_400_001, 86_400_000.0),
        ("172800000", 86_400_000.0),
        (10**400, 86_400_000.0),
        ("1e999", 86_400_000.0),
        (math.inf, 86_400_000.0),
    ],
)
@pytest.mark.parametrize("name", ["ttft", "tpot", "e2e"])
def test_a_time_outside_the_limits_is_taken_as_the_nearer_one(name, value, ms):
    headers = {f"x-slo-{name}-ms": value} if isinstance(value, str) else {}
    xargs = {} if headers else {f"slo_{name}_ms": value}
    slo = parse_slo(xargs, headers, EMPTY)
    assert getattr(slo, f"{name}_s") == pytest.approx(ms / 1e3)
    assert slo.is_lost == (ms == 1.0)
    assert not slo.is_best_effort


@pytest.mark.parametrize("absent", [None, "", "  "])
@pytest.mark.parametrize("key", ["slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms", "slo_class"])
def test_null_and_empty_are_absent_and_the_next_source_is_asked(key, absent):
    header = "x-" + key.replace("_", "-")
    value = "chat" if key == "slo_class" else "5000"
    assert parse_slo({key: absent}, {}, EMPTY) == Slo()
    asked = parse_slo({key: absent}, {header: value}, EMPTY)
    assert asked == parse_slo({key: value}, {header: absent}, EMPTY) != Slo()


@pytest.mark.parametrize("header", ["x-gateway-inference-objective", "X-llm-d-inference-objective"])
def test_a_gateways_objective_is_a_class_where_the_table_knows_it(header):
    assert parse_slo({}, {header: "chat"}, TABLE).slo_class == "chat"
    assert parse_slo({}, {header: "premium"}, EMPTY).slo_class == "premium"
    assert parse_slo({}, {header: "chat", "x-slo-class": "code"}, TABLE).slo_class == "code"
    for stranger in ("premium", "a b", ""):
        assert parse_slo({}, {header: stranger}, TABLE).slo_class == "default"


@pytest.mark.parametrize("name", ["a b", "x" * 65, "né", "-x", 3, ["chat"]])
def test_a_bad_class_name_is_refused(name):
    with pytest.raises(InputError, match="slo_class must be"):
        parse_slo({"slo_class": name}, {}, EMPTY)


def test_an_unknown_class_lists_the_known_ones_and_an_empty_table_takes_any():
    with pytest.raises(InputError, match="unknown slo_class 'chta'; known: chat, code"):
        TABLE.resolve("chta")
    assert EMPTY.resolve("chta").slo_class == "chta"
    assert TABLE.resolve("default").is_best_effort


def test_limits_themselves_are_allowed():
    low, high = SLO_LIMIT_MS
    slo = parse_slo({"slo_ttft_ms": low, "slo_e2e_ms": str(high)}, {}, EMPTY)
    assert (slo.ttft_s, slo.e2e_s) == (low / 1000, high / 1000)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"chat": {"ttft": 3}}, "unknown key 'ttft'"),
        ({"chat": {"ttft_ms": 0}}, "slo_ttft_ms"),
        ({"chat": {"weight": 0}}, "weight"),
        ({"chat": {"weight": math.nan}}, "weight"),
        ({"chat": 5}, "must be an object"),
        ({"": {}}, "slo_class must be"),
        ([], "must be an object of classes"),
    ],
)
def test_a_bad_table_is_refused(classes, message):
    with pytest.raises(InputError, match=message):
        SloTable.from_dict(classes)


def test_table_round_trip_and_weights():
    again = SloTable.from_dict(TABLE.to_dict())
    assert dict(again) == dict(TABLE)
    assert (again.weight("code"), again.weight("chat"), again.weight("other")) == (2.0, 1.0, 1.0)


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.nan, math.inf, True, "1", 1e6])
def test_slo_itself_refuses_impossible_seconds(seconds):
    with pytest.raises(InputError, match="e2e_s must lie"):
        Slo(e2e_s=seconds)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.lists(st.integers(), max_size=2),
)
keys = st.sampled_from(["slo_ttft_ms", "slo_tpot_ms", "slo_e2e_ms", "slo_class", "other"])
names = st.sampled_from(["x-slo-ttft-ms", "X-SLO-E2E-MS", "x-llm-d-slo-tpot-ms", "x-slo-class"])


@given(st.dictionaries(keys, anything), st.dictionaries(names, st.text(max_size=12)))
def test_parse_gives_a_valid_slo_or_an_input_error(xargs, headers):
    for table in (EMPTY, TABLE):
        try:
            slo = parse_slo(xargs, headers, table)
        except InputError:
            continue
        for seconds in (slo.ttft_s, slo.tpot_s, slo.e2e_s):
            assert seconds is None or 0.001 <= seconds <= 86_400
        again = parse_slo(slo.to_xargs(), {}, EMPTY)
        assert again.slo_class == slo.slo_class
        for name in ("ttft_s", "tpot_s", "e2e_s"):
            assert getattr(again, name) == pytest.approx(getattr(slo, name))
