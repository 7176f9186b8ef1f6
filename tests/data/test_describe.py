from __future__ import annotations

import gzip
import io
import json

import pytest
from pack_files import pack_row
from rich.console import Console

from lengthwise.data.arena.workloads import build_workload
from lengthwise.data.describe import describe
from lengthwise.data.errors import InputError
from lengthwise.data.request_log import ROW_KEYS
from lengthwise.data.sources.load import load_table
from lengthwise.data.sources.synthetic.corpus import synthetic_table
from lengthwise.data.workload import write_workload
from lengthwise.training.cli.description import render


def shown(description):
    console = Console(file=io.StringIO(), width=200)
    render(description, console)
    json.dumps(description, allow_nan=False)
    return console.file.getvalue()


def test_a_pack(packs):
    figures = describe("gpt35")
    table = load_table("gpt35")
    assert figures["kind"] == "prompts"
    assert figures["rows"] == 200
    assert figures["licenses"] == {"MIT": 200}
    assert sum(figures["splits"].values()) == 200
    assert figures["duplicates_across_splits"] == 0
    assert figures["output_tokens"]["max"] == table["output_tokens"].max()
    assert figures["output_tokens"]["p50"] == table["output_tokens"].median()
    assert sum(part["rows"] for part in figures["by"]) == 200
    assert {part["slo_class"] for part in figures["by"]} == set(table["slo_class"])
    assert "made_up" in shown(figures)


def test_a_prompt_on_two_sides_is_counted(tmp_path):
    path = tmp_path / "p.jsonl"
    rows = [pack_row(i, prompt="the same", group=f"g{i}") for i in range(30)]
    for one in rows:
        del one["id"]
    path.write_text("\n".join(json.dumps(one) for one in rows))
    assert describe(str(path))["duplicates_across_splits"] == 1


def test_a_workload_file(tmp_path):
    path = tmp_path / "w.jsonl"
    requests = build_workload("paper", synthetic_table(rows=1500), 100, 4.0, seed=0)
    write_workload(path, requests)
    figures = describe(str(path))
    assert (figures["kind"], figures["rows"], figures["with_prompt_text"]) == ("workload", 100, 100)
    assert figures["rate_rps"] == pytest.approx(99 / requests[-1].arrival_s)
    assert {(part["slo_class"], part["slo"], part["rows"]) for part in figures["by"]} == {
        ("code", "e2e 30 s", 50),
        ("chat", "ttft 10 s, tpot 0.05 s", 50),
    }
    assert "ttft 10 s" in shown(figures)


def test_a_request_log(tmp_path):
    base = dict.fromkeys(ROW_KEYS) | {"prompt_tokens": 3, "output_tokens": 5, "prompt": "q"}
    rows = [
        base | {"request_id": "a", "status": "finished", "met": True, "arrival_unix_s": 10.0},
        base | {"request_id": "b", "status": "shed", "met": False, "arrival_unix_s": 12.0},
    ]
    path = tmp_path / "requests-1.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows) + "{torn")
    figures = describe(str(tmp_path))
    assert figures["kind"] == "request_log"
    assert figures["statuses"] == {"finished": 1, "shed": 1}
    assert (figures["met_share"], figures["torn_lines"], figures["rows"]) == (0.5, 1, 1)
    assert "request_log" in shown(figures)
    assert figures["predictions"] == []
    path.write_text(json.dumps(rows[1]) + "\n")
    assert describe(str(tmp_path))["logged_rows"] == 1


def test_a_log_shows_champion_and_shadow_side_by_side(tmp_path):
    one = dict.fromkeys(ROW_KEYS) | {
        "request_id": "a", "status": "finished", "arrival_unix_s": 1.0, "prompt_tokens": 3,
        "output_tokens": 40, "prompt": "q", "predictor": "m/1", "predicted_tokens": 20.0,
        "quantiles": {"0.1": 5.0, "0.9": 30.0}, "shadow": "m/2", "shadow_tokens": 40.0,
        "shadow_quantiles": {"0.1": 30.0, "0.9": 50.0},
    }  # fmt: skip
    (tmp_path / "requests-x.jsonl").write_text(json.dumps(one) + "\n")
    figures = describe(str(tmp_path))
    text = shown(figures)
    assert [side["coverage_80"] for side in figures["predictions"]] == [0.0, 1.0]
    assert "m/1" in text
    assert "m/2" in text


def test_traces_by_path_and_by_name(tmp_path, monkeypatch):
    path = tmp_path / "d" / "traces" / "azure2023_code.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress(b"t_s,in_tok,out_tok\n0,4,1\n1,5,2\n3,6,3\n"))
    with pytest.raises(InputError, match="lengthwise data fetch azure2023_code"):
        describe("azure2023_code")
    monkeypatch.setenv("LENGTHWISE_DATA", str(tmp_path / "d"))
    for spec in ("azure2023_code", str(path)):
        figures = describe(spec)
        assert (figures["kind"], figures["rows"], figures["span_s"]) == ("trace", 3, 3.0)
        assert figures["rate_rps"] == pytest.approx(2 / 3)
        assert figures["peak_rps"] == pytest.approx(0.3)
        assert figures["output_tokens"] == {"mean": 2.0, "p50": 2.0, "p95": 2.9, "max": 3}
    assert "azure2023" in shown(figures)


def test_what_is_no_data(tmp_path):
    path = tmp_path / "things.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="needs a column t_s or TIMESTAMP"):
        describe(str(path))
    with pytest.raises(InputError, match="no data source"):
        describe("nothing")


def test_everything_real(real_data):
    assert describe("gpt35")["duplicates_across_splits"] == 0
    assert describe("azure2023_code")["rows"] == 7300
