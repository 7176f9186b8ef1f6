from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lengthwise.data.errors import InputError
from lengthwise.data.sources.catalogue import CATALOGUE, PublicSet
from lengthwise.data.sources.fetch import fetch, fetched_file
from lengthwise.data.sources.load import load_table

BODY = b"".join(
    json.dumps({"instruction": f"do {i}", "context": "", "response": f"done {i}"}).encode() + b"\n"
    for i in range(20_000)
)
HUB_PATH = "/datasets/some/made-up/resolve/"


class Server:
    """A file server on loopback that answers as the hub does, and can break or refuse."""

    def __init__(self) -> None:
        self.body = BODY
        self.break_after: list[int] = []
        self.status = 200
        self.requests: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, start):
                if server.status != 200:
                    self.send_error(server.status)
                    return
                content = server.body[start:]
                self.send_response(206 if start else 200)
                if start:
                    last = len(server.body) - 1
                    self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.body)}")
                self.send_header("Content-Length", str(len(content)))
                if HUB_PATH in self.path:
                    self.send_header("ETag", f'"{hashlib.sha256(server.body).hexdigest()}"')
                    self.send_header("X-Repo-Commit", "c0ffee" * 6 + "c0ff")
                self.end_headers()
                if self.command == "GET":
                    cut = server.break_after.pop(0) if server.break_after else len(content)
                    self.wfile.write(content[:cut])
                self.close_connection = True

            def do_GET(self):
                wanted = self.headers.get("Range")
                if self.path.endswith(".jsonl"):  # the hub's client asks for more than the file
                    server.requests.append(wanted)
                self.answer(int(wanted[6:].partition("-")[0]) if wanted else 0)

            def do_HEAD(self):
                self.answer(0)

            def log_message(self, *_):
                return

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    server = Server()
    monkeypatch.setattr("time.sleep", lambda _: None)  # the hub's client waits between its tries
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    yield server
    server.http.shutdown()
    server.http.server_close()


@pytest.fixture(params=["hub", "url"])
def entry(request, server, monkeypatch):
    on_hub = request.param == "hub"
    entry = PublicSet(
        name="made_up",
        path="folder/set.jsonl" if on_hub else f"{server.url}/set.jsonl",
        repository="some/made-up" if on_hub else None,
        license="MIT",
        kind="prompts",
        reader="jsonl",
        about="for tests",
        sha256=hashlib.sha256(BODY).hexdigest(),
        size_bytes=len(BODY),
    )
    monkeypatch.setitem(CATALOGUE, "made_up", entry)
    return entry


def test_a_set_is_fetched_once_with_its_licence_shown(tmp_path, server, entry, capsys):
    file = fetch("made_up", tmp_path)
    assert file.read_bytes() == BODY
    assert file == tmp_path / "made_up.jsonl"
    assert "made_up: licence MIT; from " in capsys.readouterr().err
    assert fetch("made_up", tmp_path) == file
    assert len(server.requests) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["made_up.jsonl"]
    fetch("made_up", tmp_path, force=True)
    assert len(server.requests) == 2


@pytest.mark.parametrize("entry", ["hub"], indirect=True)
def test_a_broken_transfer_is_resumed(tmp_path, server, entry, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1 << 16)
    server.break_after = [300_000]
    assert fetch("made_up", tmp_path).read_bytes() == BODY
    assert [wanted is None for wanted in server.requests] == [True, False]


@pytest.mark.parametrize("entry", ["url"], indirect=True)
def test_a_broken_transfer_leaves_nothing(tmp_path, server, entry):
    server.break_after = [300_000]
    with pytest.raises(InputError, match="made_up: cannot be fetched"):
        fetch("made_up", tmp_path)
    assert fetched_file("made_up", tmp_path) is None
    assert fetch("made_up", tmp_path).read_bytes() == BODY


def test_a_wrong_checksum_leaves_nothing(tmp_path, server, entry, monkeypatch):
    monkeypatch.setitem(CATALOGUE, "made_up", replace(entry, sha256="0" * 64))
    with pytest.raises(InputError, match=r"made_up: SHA-256 must be 0000.*, got"):
        fetch("made_up", tmp_path)
    assert fetched_file("made_up", tmp_path) is None
    assert list(tmp_path.rglob("*.jsonl")) == []


@pytest.mark.parametrize("status", [403, 404, 500])
def test_a_refusal_is_reported(tmp_path, server, entry, status):
    server.status = status
    with pytest.raises(InputError, match="made_up: cannot be fetched"):
        fetch("made_up", tmp_path)
    assert fetched_file("made_up", tmp_path) is None


def test_nobody_there(tmp_path, entry, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setitem(CATALOGUE, "made_up", replace(entry, path="http://127.0.0.1:9/x.jsonl"))
    with pytest.raises(InputError, match="made_up: cannot be fetched, run it again to resume"):
        fetch("made_up", tmp_path)


def test_a_proxy_is_honoured(tmp_path, server, entry, monkeypatch):
    """Nobody but the proxy, here the file server itself, can reach the addresses."""
    for name in ("NO_PROXY", "no_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", server.url)
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    if entry.repository is None:
        monkeypatch.setitem(
            CATALOGUE, "made_up", replace(entry, path="http://files.invalid/set.jsonl")
        )
    assert fetch("made_up", tmp_path).read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_file_of_another_length_is_not_present(tmp_path, server, entry):
    file = fetch("made_up", tmp_path)
    file.write_bytes(BODY[:-1])
    assert fetched_file("made_up", tmp_path) is None


def test_a_folder_that_cannot_be(tmp_path, server, entry):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be made"):
        fetch("made_up", tmp_path / "file" / "sub")


def test_a_fetched_set_loads_by_name(server, entry):
    with pytest.raises(InputError, match="run: lengthwise data fetch made_up"):
        load_table("made_up")
    fetch("made_up")
    table = load_table("made_up", limit=30)
    assert len(table) == 30
    assert table.attrs["source_label"] == "made_up"
    assert table["license"].unique().tolist() == ["MIT"]
    assert table.attrs["data_sha256"] == hashlib.sha256(BODY).hexdigest()


def test_unknown_names_list_the_known(tmp_path):
    with pytest.raises(InputError, match="no public set 'dolly'; known: sharegpt_vicuna"):
        fetch("dolly", tmp_path)


def test_the_catalogue_is_well_formed():
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.license
        assert entry.file_name.startswith(f"{name}.")
        if entry.repository is None:
            assert entry.path.startswith("https://")
        else:
            assert entry.sha256 is not None
            assert entry.size_bytes is not None
