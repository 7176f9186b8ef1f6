from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.sources.catalogue import CATALOGUE, PublicSet
from lengthwise.data.sources.fetch import fetch, fetch_set, fetched_file, read_manifest
from lengthwise.data.sources.load import load_table

BODY = b"".join(
    json.dumps({"instruction": f"do {i}", "context": "", "response": f"done {i}"}).encode() + b"\n"
    for i in range(20_000)
)


class Server:
    """A file server on loopback that can break, refuse Range, or answer an error."""

    def __init__(self) -> None:
        self.body = BODY
        self.ranges = True
        self.break_after: list[int] = []
        self.status = 200
        self.requests: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.requests.append(wanted)
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = int(wanted[6:-1]) if wanted and server.ranges else 0
                if start and start >= len(server.body):
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(server.body)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = server.body[start:]
                self.send_response(206 if start else 200)
                if start:
                    last = len(server.body) - 1
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.body)}")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                cut = server.break_after.pop(0) if server.break_after else len(content)
                self.wfile.write(content[:cut])
                self.close_connection = True

            def log_message(self, *_):
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/set.jsonl"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture
def entry(server, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return PublicSet(
        name="made_up",
        url=server.url,
        license="MIT",
        kind="prompts",
        reader="jsonl",
        about="for tests",
        sha256=hashlib.sha256(BODY).hexdigest(),
        size_bytes=len(BODY),
    )


def test_a_set_is_fetched_once_with_its_licence_shown(tmp_path, server, entry, capsys):
    file = fetch_set(entry, tmp_path)
    assert file.read_bytes() == BODY
    assert file.name == "made_up.jsonl"
    assert "licence MIT" in capsys.readouterr().err
    manifest = read_manifest("made_up", tmp_path)
    assert manifest["sha256"] == entry.sha256
    assert manifest["sha256_origin"] == "catalogue"
    assert manifest["bytes"] == len(BODY)
    assert fetch_set(entry, tmp_path) == file
    assert server.requests == [None]
    assert {p.name for p in tmp_path.iterdir()} == {"made_up.jsonl", "made_up.manifest.json"}


def test_a_broken_transfer_is_resumed_within_one_call(tmp_path, server, entry):
    server.break_after = [300_000, 200_000]
    assert fetch_set(entry, tmp_path).read_bytes() == BODY
    assert server.requests[0] is None
    assert len(server.requests) == 3
    assert all(r.startswith("bytes=") for r in server.requests[1:])


def test_a_partial_file_is_resumed_by_the_next_call(tmp_path, server, entry):
    (tmp_path / "made_up.jsonl.part").write_bytes(BODY[:123_456])
    assert fetched_file("made_up", tmp_path) is None
    assert fetch_set(entry, tmp_path).read_bytes() == BODY
    assert server.requests == ["bytes=123456-"]


def test_a_whole_partial_file_needs_no_more_bytes(tmp_path, server, entry):
    (tmp_path / "made_up.jsonl.part").write_bytes(BODY)
    assert fetch_set(entry, tmp_path).read_bytes() == BODY


def test_a_server_without_range_starts_over(tmp_path, server, entry):
    server.ranges = False
    server.break_after = [300_000]
    assert fetch_set(entry, tmp_path).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_partial_file_of_another_version_is_dropped(tmp_path, server, entry):
    (tmp_path / "made_up.jsonl.part").write_bytes(BODY + b"more")
    with pytest.raises(InputError, match="answered 416"):
        fetch_set(entry, tmp_path)
    assert fetch_set(entry, tmp_path).read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing(tmp_path, server, entry):
    with pytest.raises(InputError, match=r"SHA-256 must be 0000.* \(catalogue\), got"):
        fetch_set(replace(entry, sha256="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_first_use_is_trusted_and_remembered(tmp_path, server, entry):
    entry = replace(entry, sha256=None)
    fetch_set(entry, tmp_path)
    assert read_manifest("made_up", tmp_path)["sha256_origin"] == "first fetch"
    fetch_set(entry, tmp_path, force=True)
    server.body = BODY.replace(b"done 7", b"gone 7")
    with pytest.raises(InputError, match=r"SHA-256 must be .* \(first fetch\)"):
        fetch_set(entry, tmp_path, force=True)
    assert fetched_file("made_up", tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_reported(tmp_path, server, entry, status):
    server.status = status
    with pytest.raises(InputError, match=f"made_up: http.* answered {status}"):
        fetch_set(entry, tmp_path)
    assert fetched_file("made_up", tmp_path) is None


def test_nobody_there(tmp_path, entry):
    with pytest.raises(InputError, match="the transfer broke after 0 bytes"):
        fetch_set(replace(entry, url="http://127.0.0.1:9/x.jsonl"), tmp_path)
    with pytest.raises(InputError, match="the transfer broke"):
        fetch_set(replace(entry, url="nonsense.jsonl"), tmp_path)


def test_an_incomplete_or_damaged_set_is_not_present(tmp_path, server, entry):
    file = fetch_set(entry, tmp_path)
    file.write_bytes(BODY[:-1])
    assert fetched_file("made_up", tmp_path) is None
    (tmp_path / "made_up.manifest.json").write_text("{}")
    with pytest.raises(InputError, match="damaged manifest"):
        fetched_file("made_up", tmp_path)


def test_a_folder_that_cannot_be(tmp_path, server, entry):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        fetch_set(entry, tmp_path / "file" / "sub")


def test_a_fetched_set_loads_by_name(tmp_path, server, entry, monkeypatch):
    entry = replace(entry, name="dolly_15k")
    monkeypatch.setitem(CATALOGUE, "dolly_15k", entry)
    fetch("dolly_15k", progress=False)
    table = load_table("dolly_15k", limit=30)
    assert len(table) == 30
    assert table.attrs["source_label"] == "dolly_15k"
    assert table["license"].unique().tolist() == ["MIT"]
    assert table.attrs["data_sha256"] == hashlib.sha256(BODY).hexdigest()


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(InputError, match="no public set 'dolly'; known: sharegpt_vicuna"):
        fetch("dolly", tmp_path)


def test_the_catalogue_is_well_formed():
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.url.startswith("https://")
        assert entry.license
        assert entry.file_name.startswith(f"{name}.")
        assert entry.sha256 is None or len(entry.sha256) == 64
