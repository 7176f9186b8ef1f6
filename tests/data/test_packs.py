from __future__ import annotations

import gzip
import re

import pytest
from pack_files import pack_row, write_gz

from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import available_packs, default_source, load_table
from lengthwise.data.sources.packs import is_censored, read_pack
from lengthwise.data.splits import split_of


def test_a_pack_is_found_by_name_and_is_the_default(packs):
    assert available_packs() == ["gpt35"]
    assert default_source() == "gpt35"
    table = load_table("gpt35")
    assert len(table) == 200
    assert table.attrs["source_label"] == "gpt35"
    assert table.attrs["tokenizer"] == "tekken"
    assert len(table.attrs["data_sha256"]) == 64
    assert table["response"][3] == "answer 3"


def test_a_path_is_a_file_not_a_pack(packs, tmp_path):
    with pytest.raises(InputError, match="no data source"):
        load_table(str(packs / "packs" / "gpt35"))
    assert len(load_table(str(packs / "packs" / "gpt35.jsonl.gz"))) == 200


def test_limit_is_drawn_over_the_whole_file(packs):
    part = load_table("gpt35", limit=20)
    assert len(part) == 20
    assert part["output_tokens"].max() > 100
    assert part.equals(load_table("gpt35", limit=20))
    with pytest.raises(InputError, match="limit must be at least 1, got 0"):
        load_table("gpt35", limit=0)


def test_an_unknown_source_lists_what_there_is(packs):
    with pytest.raises(InputError, match=r"no data source 'gtp35'.*gpt35.*sharegpt_vicuna"):
        load_table("gtp35")
    with pytest.raises(InputError, match="dolly_15k is not fetched yet"):
        load_table("dolly_15k")
    with pytest.raises(InputError, match="is a trace"):
        load_table("azure2023_code")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "prompt must be non-empty text, got None"),
        ({"prompt": ""}, "prompt must be non-empty text"),
        ({"response": 5}, "response must be non-empty text"),
        ({"prompt_tokens": 3.0}, "prompt_tokens must be a whole number, got 3.0"),
        ({"prompt_tokens": True}, "prompt_tokens"),
        ({"output_tokens": "12"}, "output_tokens must be a whole number, got '12'"),
    ],
)
def test_a_bad_row_is_named_and_the_others_are_read(tmp_path, changes, message):
    path = write_gz(tmp_path / "p.jsonl.gz", [pack_row(0), pack_row(1, **changes)])
    table = read_pack(path)
    assert table["prompt"].tolist() == ["question 0"]
    (entry,) = table.attrs["skipped"]
    assert entry["first"].startswith(f"{path}:2: ")
    assert re.search(message, entry["first"])
    with pytest.raises(InputError, match=message):
        read_pack(write_gz(tmp_path / "all.jsonl.gz", [pack_row(1, **changes)]))


def test_counts_and_classes_are_checked(tmp_path):
    with pytest.raises(InputError, match="output_tokens must be a whole number from 1"):
        read_pack(write_gz(tmp_path / "p.jsonl.gz", [pack_row(1, output_tokens=-3)]))
    with pytest.raises(InputError, match="slo_class must be"):
        read_pack(write_gz(tmp_path / "p.jsonl.gz", [pack_row(1, slo_class="a b")]))


def test_empty_truncated_and_corrupt_packs(tmp_path):
    path = write_gz(tmp_path / "p.jsonl.gz", [])
    with pytest.raises(InputError, match="at least one row"):
        read_pack(path)
    write_gz(path, [pack_row(i) for i in range(3000)])
    path.write_bytes(path.read_bytes()[:-4000])
    table = read_pack(path)
    assert 1 <= len(table) < 3000
    (skipped,) = table.attrs["skipped"]
    assert skipped["reason"] == "gzip ends early"
    path.write_bytes(gzip.compress(b'{"id": \n'))
    with pytest.raises(InputError, match=":1: not JSON"):
        read_pack(path)


@pytest.mark.parametrize(
    ("pack", "source", "tokens", "response", "cut"),
    [
        ("mixtral_8x7b", "mmlu_pro", 248, "so the force is 3 times", True),
        ("mixtral_8x7b", "mmlu_pro", 248, "so the answer is (B).", False),
        ("mixtral_8x7b", "mmlu_pro", 150, "so the force is 3 times", False),
        ("mixtral_8x7b", "arena_hard", 900, "so the force is 3 times", False),
        ("llama31_8b", "mmlu_pro", 2049, "T | F | T | F", True),
        ("llama31_8b", "mmlu_pro", 800, "T | F | T | F", False),
        ("llama31_8b", "zeroeval", 4100, "+ 4 + 4 + 4", True),
        ("llama31_8b", "zeroeval", 4100, '{"answer": "4"}\n', False),
        ("someone", "zeroeval", 4100, "+ 4 + 4 + 4", False),
    ],
)
def test_the_rule_for_cut_answers(pack, source, tokens, response, cut):
    assert is_censored(pack, source, tokens, response) is cut


def test_the_real_packs(real_data):
    rows = {"gpt35": 11_685, "llama3_8b": 4_521, "mixtral_8x7b": 13_437}
    censored = {"gpt35": 4, "llama3_8b": 67, "mixtral_8x7b": 995}
    for name, count in rows.items():
        table = load_table(name)
        assert len(table) == count
        assert int(table["censored"].sum()) == censored[name]
        sides = split_of(list(table["group"]))
        assert (table.assign(side=sides).groupby("id")["side"].nunique() == 1).all()
