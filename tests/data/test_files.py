import os
import stat

import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.files import read_object, whole_file, write_whole


def test_an_object_comes_back(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, "ü"]}', encoding="utf-8")
    assert read_object(path) == {"a": [1, "ü"]}


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (None, "cannot read SLO table .*no such file"),
        (b'{"a": ', "SLO table .*a.json: not JSON"),
        (b"[1]", r"SLO table .*a.json: must be a JSON object, got \[1\]"),
        (b"\xff\xfe", "cannot read SLO table .*not UTF-8"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_anything_else_is_refused(tmp_path, content, rule):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=rule):
        read_object(path, "SLO table")


def test_a_file_is_seen_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")

    def broken_off():
        with whole_file(path) as file:
            file.write("new")
            assert path.read_text() == "old"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        broken_off()
    assert path.read_text() == "old"
    with whole_file(path) as file:
        file.write("new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]  # noqa: PTH208
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
