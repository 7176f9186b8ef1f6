import os
import stat
import threading

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
        (b'{"a": {"b": 1, "b": 2}}', "SLO table .*a.json: a key must stand once .* got 'b' twice"),
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


def test_a_link_stays_one_and_a_file_keeps_its_mode(tmp_path):
    (tmp_path / "real").mkdir()
    file, link = tmp_path / "real" / "a.txt", tmp_path / "link"
    link.symlink_to(file)
    write_whole(link, "first")  # to where it is meant to be
    assert link.is_symlink()
    file.chmod(0o600)
    write_whole(link, "second")
    assert (file.read_text(), stat.S_IMODE(file.stat().st_mode)) == ("second", 0o600)
    assert os.listdir(tmp_path / "real") == ["a.txt"]  # noqa: PTH208


def test_what_is_no_file_is_written_to_and_stays_what_it_is(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    came = []
    reader = threading.Thread(target=lambda: came.append(pipe.read_text()))
    reader.start()
    write_whole(pipe, "new")
    reader.join()
    assert came == ["new"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    link = tmp_path / "full"
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space"):
        write_whole(link, "new")
    assert stat.S_ISCHR(link.stat().st_mode)


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_folder_and_no_name_are_refused(name):
    with pytest.raises(InputError, match="must be the name of a file to write"):
        write_whole(name, "new")


def test_errors_name_what_was_asked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none/a\.txt'$"):
        write_whole(tmp_path / "none" / "a.txt", "new")
    write_whole(tmp_path / ("x" * 250), "new")
