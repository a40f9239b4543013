"""Requests that are hardly HTTP, or not meant for this server: each is refused in the API's form."""

from __future__ import annotations

import json
import logging
from functools import partial

import pytest

pytest.importorskip("uvicorn")

from rrt_edge.runtime import Model
from tests.serving import Here, serving_here


def answer(here: Here, content: bytes) -> tuple[bytes, dict[str, object]]:
    """What comes back over a connection until it ends: the first line, and the error of the body."""
    with here.connect() as connection:
        connection.sendall(content)
        received = b"".join(iter(partial(connection.recv, 1 << 16), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return head.splitlines()[0], json.loads(body)["error"]


def test_a_request_that_ends_as_no_http_is_refused_once(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    """The application has the request already; its answer comes after the refusal, and has nowhere to go."""
    head = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n"
    with serving_here(model) as here, caplog.at_level(logging.ERROR):
        for _ in range(20):
            line, error = answer(here, head + b"Transfer-Encoding: chunked\r\n\r\nno chunk\r\n")
            assert b" 400 " in line and error["type"] == "invalid_request_error"
        assert here.client.get("/health").status_code == 200
    assert caplog.records == []
