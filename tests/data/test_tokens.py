from __future__ import annotations

import sys

import pytest
from pack_files import pack_row, write_gz
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from lengthwise.data.errors import InputError
from lengthwise.data.sources.load import load_table
from lengthwise.data.tokens import count_response_tokens, count_tokens, load_counter


@pytest.fixture
def by_word(tmp_path):
    """A Hugging Face tokenizer folder that knows words only."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "question": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_tekken_counts_without_marks():
    # "Hello", " world", "!" are single Tekken tokens
    assert count_tokens(["Hello world!", "", "Hello world!"]).tolist() == [3, 0, 3]
    assert count_response_tokens(["Hello world!", ""]).tolist() == [4, 1]
    assert load_counter() is load_counter("tekken")


def test_tekken_survives_a_lone_surrogate():
    assert count_tokens(["a \ud83d b"])[0] >= 3


def test_a_hugging_face_folder_or_file(by_word):
    assert count_tokens(["one two three"], str(by_word)).tolist() == [3]
    assert count_tokens(["one two"], str(by_word / "tokenizer.json")).tolist() == [2]


def test_a_table_is_counted_anew_with_the_served_tokenizer(packs, by_word):
    table = load_table("gpt35", limit=5, tokenizer=str(by_word))
    assert table["prompt_tokens"].tolist() == [2] * 5
    assert table["output_tokens"].tolist() == [3] * 5
    assert table.attrs["tokenizer"] == str(by_word)
    assert table.attrs["source_label"] == "gpt35"


def test_the_same_tokenizer_changes_nothing(packs):
    assert load_table("gpt35", tokenizer="tekken").equals(load_table("gpt35"))


def test_answers_without_text_cannot_be_counted_anew(by_word):
    with pytest.raises(InputError, match="it has no response text"):
        load_table("synthetic", limit=5, tokenizer=str(by_word))


@pytest.mark.parametrize("file_name", ["tokenizer.json", "mine.json"])
def test_what_a_tokenizer_file_says_of_cutting_and_padding_changes_no_count(tmp_path, file_name):
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "w": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(tmp_path / file_name))
    name = tmp_path if file_name == "tokenizer.json" else tmp_path / file_name
    assert count_tokens(["w " * 100, "w"], str(name)).tolist() == [100, 1]


class FakeHub:
    """Stands in for transformers, whose import takes seconds: knows one model."""

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name):
            if name != "known/model":
                raise OSError(f"{name} is not a local folder and is not a valid model identifier")
            return FakeHub.AutoTokenizer()

        @staticmethod
        def encode(text, add_special_tokens, truncation, padding):
            assert (add_special_tokens, truncation, padding) == (False, False, False)
            return list(text)


def test_a_hub_name_goes_through_transformers_and_nothing_falls_back_to_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", FakeHub)
    assert count_tokens(["abcd"], "known/model").tolist() == [4]
    with pytest.raises(InputError, match="tokenizer 'words' cannot be loaded"):
        count_tokens(["a"], "words")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="tokenizer 'other/model' needs the package transformers"):
        count_tokens(["a"], "other/model")


def test_a_damaged_tokenizer_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text("{")
    with pytest.raises(InputError, match="cannot be loaded"):
        count_tokens(["a"], str(path))


def test_pack_rows_keep_their_counts(tmp_path):
    path = write_gz(tmp_path / "mine.jsonl.gz", [pack_row(3, prompt_tokens=77)])
    table = load_table(str(path))
    assert table["prompt_tokens"].tolist() == [77]
