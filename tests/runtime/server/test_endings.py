"""Connections that send or read slowly, too many of them, and a server that is told to end beside them."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from rrt_edge.runtime import Model
from rrt_edge.runtime.server.connections import Limits
from tests.serving import serving_here

HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
PROMPT = [20, 30, 40]
SIGNALS = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")


def answer(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    taken = bytearray()
    try:
        while piece := connection.recv(1 << 16):
            taken += piece
    except ConnectionError:
        pass
    return bytes(taken)


@pytest.fixture(scope="module")
def hurried(model: Model):
    """A server that waits for nobody."""
    with serving_here(model, limits=Limits(0.3, 0.3, 0.3, connections=20)) as served:
        yield served


def test_a_connection_that_says_nothing_is_closed(hurried) -> None:
    with hurried.connect() as connection:
        assert answer(connection) == b""


@pytest.mark.parametrize("start", [b"G", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-More: a"])
def test_headers_that_do_not_end_are_refused(hurried, start: bytes) -> None:
    with hurried.connect() as connection:
        connection.sendall(start)
        reply = answer(connection)
        assert reply.startswith(b"HTTP/1.1 408 ") and b"headers took longer than 0.3 s" in reply


@pytest.mark.parametrize("path", [b"/v1/completions", b"/health", b"/nothing"])
@pytest.mark.parametrize("length", [b"Content-Length: 500", b"Transfer-Encoding: chunked"])
def test_a_body_that_does_not_end_is_refused(hurried, path: bytes, length: bytes) -> None:
    """Whether anybody reads it or not."""
    with hurried.connect() as connection:
        connection.sendall(b"POST " + path + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n")
        connection.sendall(length + b"\r\n\r\n" + (b'5\r\n{"pro\r\n' if b"chunked" in length else b'{"prompt"'))
        reply = answer(connection)
        if path == b"/v1/completions":
            assert reply.startswith(b"HTTP/1.1 408 ") and b"body took longer than 0.3 s" in reply
    assert hurried.client.get("/health").status_code == 200


def test_what_is_no_http_is_the_apis_error(hurried) -> None:
    with hurried.connect() as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        reply = answer(connection)
        assert reply.startswith(b"HTTP/1.1 400 ") and b'"type": "invalid_request_error"' in reply


def test_a_body_that_trickles_is_refused_all_the_same(hurried) -> None:
    with hurried.connect() as connection:
        connection.sendall(HEAD + b"100000\r\n\r\n")
        try:
            while True:
                connection.sendall(b" ")
        except ConnectionError:
            pass
    assert hurried.client.get("/health").status_code == 200


def test_a_client_that_does_not_read_is_let_go(serve_endless) -> None:
    body = b'{"prompt": [20, 30, 40], "max_tokens": 60000, "stream": true, "return_depths": true}'
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((serve_endless.host, serve_endless.port))
        connection.sendall(HEAD + str(len(body)).encode() + b"\r\n\r\n" + body)
        while not serve_endless.running:
            pass
        while serve_endless.running:  # nothing but the server's patience ends it
            pass


@pytest.fixture(scope="module")
def serve_endless(endless: Path):
    with (
        Model.load(endless, context=65536, threads=1) as model,
        serving_here(model, limits=Limits(send_seconds=0.3), most_tokens=60000, kv_budget_bytes=20 << 30) as served,
    ):
        yield served


def test_connections_are_bounded_and_the_others_told(hurried) -> None:
    many = [hurried.connect() for _ in range(40)]
    replies = [answer(connection) for connection in many]
    for connection in many:
        connection.close()
    refused = [reply for reply in replies if reply.startswith(b"HTTP/1.1 503 ")]
    assert len(refused) >= 20 and all(b'"type": "server_error"' in reply for reply in refused)
    assert hurried.client.get("/health").status_code == 200


@SIGNALS
def test_idle_clients_leave_the_server_descriptors_and_its_log_short(serve, endless: Path) -> None:
    resource = pytest.importorskip("resource")
    served = serve(endless)
    resource.prlimit(served.process.pid, resource.RLIMIT_NOFILE, (256, 256))
    host, port = served.url.removeprefix("http://").split(":")
    many = [socket.create_connection((host, int(port))) for _ in range(300)]
    for connection in many:
        connection.close()
    assert served.get("/health").status_code == 200
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait() == 0
    assert len(served.process.stderr.read().splitlines()) < 60


@SIGNALS
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_unfinished_requests_hold_a_server_no_longer_than_its_grace(serve, endless: Path, kind: int) -> None:
    """Half a header, half a body, and a client that does not read."""
    served = serve(endless, "--grace", "0.5", "--context", "65536", "--max-tokens", "60000", "--kv-budget", "20000")
    host, port = served.url.removeprefix("http://").split(":")
    body = b'{"prompt": [20, 30, 40], "max_tokens": 60000, "stream": true}'
    starts = [b"GET / HT", HEAD + b"500\r\n\r\n{", HEAD + str(len(body)).encode() + b"\r\n\r\n" + body]
    connections = [socket.create_connection((host, int(port))) for _ in starts]
    for connection, start in zip(connections, starts, strict=True):
        connection.sendall(start)
    while served.metric("rrt_edge_requests_running ") < 1:
        pass
    served.process.send_signal(kind)
    assert served.process.wait() == 0
    assert "Traceback" not in served.process.stderr.read()
    for connection in connections:
        connection.close()


@SIGNALS
@pytest.mark.parametrize(("first", "second"), [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_of_any_kind_ends_at_once(serve, endless: Path, first: int, second: int) -> None:
    served = serve(endless, "--grace", "3600")
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(HEAD + b"500\r\n\r\n{")
        assert served.get("/health").status_code == 200
        served.process.send_signal(first)
        assert "Ctrl-C again" in served.process.stderr.readline()
        served.process.send_signal(second)
        assert served.process.wait() == 0
