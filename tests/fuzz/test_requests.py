"""Requests, changed: each is answered or refused as the API has it, and no neighbour's reply changes."""

from __future__ import annotations

import http.client
import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("uvicorn")
pytest.importorskip("openai")

from openai.types import Completion, ErrorObject
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from rrt_edge.runtime import Model
from rrt_edge.runtime.server.connections import Limits
from tests.conftest import PREBUILT
from tests.fuzz.budget import cases
from tests.fuzz.documents import Draw, changed_bytes
from tests.fuzz.refusals import check_message
from tests.fuzz.request_bodies import bodies
from tests.serving import Here, serving_here

MOST_TOKENS = 6  # of a reply
OFTEN = 25  # cases after which a neighbour looks whether its reply is what it was
HONEST = {"prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0.9, "seed": 3, "return_depths": True}
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
WHOLE = {"chat/completions": ChatCompletion, "completions": Completion}
CHUNK = {"chat/completions": ChatCompletionChunk, "completions": Completion}


class Errors(logging.Handler):
    """What the program logs as an error: nothing, for whatever comes is foreseen."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    with Model.load(PREBUILT, device="cpu", threads=1) as loaded:
        yield loaded


class Watched:
    """A server, what it logs as errors, and a neighbour whose reply is to stay the same."""

    def __init__(self, here: Here, errors: list[str]) -> None:
        self.here, self.errors, self.count = here, errors, 0
        self.alone = self.honest_tokens()

    def honest_tokens(self) -> list[tuple[int, int]]:
        (choice,) = self.here.post(HONEST).json()["choices"]
        return [(token["id"], token["depth"]) for token in choice["rrt_edge"]["tokens"]]

    def check(self) -> None:
        """Nothing went wrong in the last case, and every so often: an honest request is answered as before."""
        assert self.errors == []
        self.count += 1
        if self.count % OFTEN == 0:
            assert self.honest_tokens() == self.alone


@contextmanager
def watched(model: Model, limits: Limits) -> Iterator[Watched]:
    handler = Errors()
    logging.getLogger().addHandler(handler)
    try:
        with serving_here(model, most_tokens=MOST_TOKENS, limits=limits) as here:
            yield Watched(here, handler.texts)
    finally:
        logging.getLogger().removeHandler(handler)


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Watched]:
    with watched(model, Limits()) as server:
        yield server


@pytest.fixture(scope="module")
def hasty(model: Model) -> Iterator[Watched]:
    """A server that does not wait for what is missing of a request."""
    with watched(model, Limits(header_seconds=0.2, body_seconds=0.2)) as server:
        yield server


def check_error(status: int, body: Any) -> None:
    """A refusal in the API's form."""
    assert 400 <= status < 500, (status, body)
    error = ErrorObject.model_validate(body["error"])
    assert error.type == KINDS.get(status, "invalid_request_error")
    check_message(error.message)


def check_whole(endpoint: str, body: dict[str, Any]) -> None:
    """An answer in the API's form, of as many tokens and choices as there may be."""
    answer = WHOLE[endpoint].model_validate(body)
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    assert all(choice.finish_reason in ("stop", "length") for choice in answer.choices)
    assert 0 < answer.usage.completion_tokens <= MOST_TOKENS * len(answer.choices)


def check_events(endpoint: str, text: str) -> None:
    """Chunks in the API's form, or an error as its last; then the end."""
    *events, last = [line.removeprefix("data: ") for line in text.splitlines() if line]
    assert last == "[DONE]"
    for event in map(json.loads, events):
        if "error" in event:
            assert event["error"]["type"] == "invalid_request_error", event
            check_message(event["error"]["message"])
        else:
            for choice in event["choices"]:  # the API's chunks have none before the last, though the type asks for one
                choice["finish_reason"] = choice["finish_reason"] or "length"
            CHUNK[endpoint].model_validate(event)


@cases(150)
@given(request=bodies())
def test_a_changed_request_is_answered_or_refused(server: Watched, request: tuple[str, bytes]) -> None:
    endpoint, content = request
    headers = {"Content-Type": "application/json"}
    response = server.here.client.post(f"/v1/{endpoint}", content=content, headers=headers)
    if response.status_code != 200:
        check_error(response.status_code, response.json())
    elif response.headers["content-type"].startswith("text/event-stream"):
        check_events(endpoint, response.text)
    else:
        check_whole(endpoint, response.json())
    server.check()


PATHS = ["/v1/models", "/v1/models/here", "/v1/models/%00%ff", "/health", "/metrics", "/", "/../x", "http://x/y", "*"]
LINES = [f"{method} {path}".encode() for method in ("GET", "OPTIONS") for path in PATHS]
LINES += [b"POST /v1/completions"] * 12 + [b"PUT /v1/completions", b"X /v1/models/" + b"y" * 3000]
HEADERS = [
    b"Content-Length: 5", b"Content-Length: -1", b"Content-Length: 99999999999999999999", b"Content-Length: x",
    b"Transfer-Encoding: chunked", b"Transfer-Encoding: gzip", b"Content-Type: text/plain", b"Content-Type: \xff",
    b"Expect: 100-continue", b"Host:", b"Upgrade: websocket", b"Connection: upgrade", b"X: " + b"y" * 70_000,
    b"Authorization: Bearer \xff", b"Content-Encoding: gzip", b"Accept: \0", b" folded", b"no colon", b"",
    b"Cookie: \x80=;",
]  # fmt: skip


@st.composite
def exchanges(draw: Draw) -> bytes:
    """A request as it goes over a connection."""
    content = draw(
        st.sampled_from([b'{"prompt": [5, 6], "max_tokens": 1}', b"{}", b"", b"5\r\nhello\r\n0\r\n\r\n", b"-1\r\n"])
    )
    host = draw(st.sampled_from([b"localhost"] * 4 + [b"elsewhere", b"", b"localhost:80:80", b"[::1]"]))
    headers = [
        b"Host: " + host,
        b"Content-Type: application/json",
        b"Connection: close",
        b"Content-Length: %d" % len(content),
    ]
    for header in draw(st.lists(st.sampled_from(HEADERS), max_size=2)):
        headers.insert(draw(st.integers(0, len(headers))), header)
    version = draw(st.sampled_from([b"HTTP/1.1"] * 5 + [b"HTTP/1.0", b"HTTP/2", b"HTTP/1.1 x", b""]))
    line = draw(st.sampled_from(LINES)) + b" " + version
    return b"\r\n".join([line, *headers, b"", content])


class Received:
    """What came over a connection, for `http.client` to read."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self.content)


@cases(100)
@given(content=st.one_of(exchanges(), exchanges(), exchanges().flatmap(changed_bytes)))
def test_a_changed_exchange_is_answered_or_refused(hasty: Watched, content: bytes) -> None:
    received = b""
    with hasty.here.connect() as connection, suppress(ConnectionError):
        connection.sendall(content)
        received = b"".join(iter(partial(connection.recv, 1 << 16), b""))
    if received:
        response = http.client.HTTPResponse(Received(received), method="HEAD" if content[:4] == b"HEAD" else "GET")
        response.begin()
        body = response.read()
        assert response.status < 500, body
        if response.status >= 400:
            check_error(response.status, json.loads(body))
    hasty.check()
