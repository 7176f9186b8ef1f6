"""What a client sends behind its body is nobody's header: a real uvicorn, raw connections."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn
from echo_client import COMPLETIONS
from hypothesis import given, settings
from hypothesis import strategies as st
from test_layers import BODY, KEY, Server

HEADERS = {"x-slo-ttft-ms": "soon", "x-tenant": "a b", "x-slo-class": "vip"} | KEY


@contextmanager
def listening(app, http):
    config = uvicorn.Config(app, port=0, http=http, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


def asked(address, headers, trailers, cuts=()):
    """Status of a chunked completion, sent in pieces cut at these places."""
    body = json.dumps(BODY).encode()
    said = {"host": "t", "content-type": "application/json", "transfer-encoding": "chunked"}
    lines = [f"POST {COMPLETIONS} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in (said | headers).items()]
    raw = "\r\n".join([*lines, "", ""]).encode()
    raw += b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    raw += "".join(f"{name}: {value}\r\n" for name, value in trailers.items()).encode() + b"\r\n"
    places = [0, *sorted({cut % len(raw) for cut in cuts}), len(raw)]
    with socket.create_connection(address, timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start, stop in itertools.pairwise(places):
            connection.sendall(raw[start:stop])
            time.sleep(0.005)
        return int(connection.recv(100).split()[1])


@pytest.fixture
def served(monkeypatch):
    """Builds the server's layers first, as a server does before it listens."""
    server = Server(monkeypatch)
    assert server.post(COMPLETIONS, {"json": BODY}, KEY).status_code == 200
    return server


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("cuts", [(), (-1,), (-9, 400)])
def test_a_trailer_is_not_what_a_header_would_be(served, http, name, cuts):
    key = {} if name in KEY else KEY
    with listening(served.app, http) as address:
        as_header = asked(address, key | {name: HEADERS[name]}, {}, cuts)
        without = asked(address, key, {}, cuts)
        assert as_header != without
        assert asked(address, key, {name: HEADERS[name]}, cuts) == without
        assert asked(address, key | {"trailer": name}, {name: HEADERS[name]}, cuts) == without


def test_whatever_trails_in_whatever_pieces_changes_nothing(served):
    trailing = st.dictionaries(st.sampled_from(sorted(HEADERS)), st.sampled_from(["soon", "5"]))

    @settings(max_examples=40, deadline=None)
    @given(trailing, st.lists(st.integers(0, 2000), max_size=4))
    def hold(trailers, cuts):
        assert asked(address, KEY, trailers, cuts) == 200
        assert asked(address, {}, trailers | KEY, cuts) == 401

    with listening(served.app, "httptools") as address:
        hold()
