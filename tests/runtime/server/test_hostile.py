"""Requests made to cost the server time or memory: they are refused, and nobody else waits for them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from rrt_edge.runtime import Model
from rrt_edge.runtime.decoding import grammar_trial
from rrt_edge.runtime.system.children import Limits
from tests.serving import Served, serving_here

PROMPT = {"prompt": [20, 30, 40], "max_tokens": 4}
SLOW = {"type": "string", "allOf": [{"pattern": f"a.{{{count}}}b"} for count in range(10, 60)]}
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "


@pytest.fixture(scope="module")
def served(serve, bundle: Path):
    pytest.importorskip("llguidance")
    return serve(bundle)


def by_schema(schema: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}}


def sent(served: Served, body: dict[str, Any]) -> socket.socket:
    """A connection over which a request was sent."""
    host, port = served.url.removeprefix("http://").split(":")
    connection, content = socket.create_connection((host, int(port)), timeout=120), json.dumps(body)
    connection.sendall(f"{HEAD}{len(content)}\r\n\r\n{content}".encode())
    return connection


def symbols(count: int) -> str:
    """A Lark grammar whose start is 2^count times a letter."""
    return "start: a0\n" + "".join(f"a{at}: a{at + 1} a{at + 1}\n" for at in range(count)) + f'a{count}: "x"\n'


@pytest.mark.parametrize(
    "grammar",
    [
        by_schema(SLOW),
        by_schema({"type": "string", "allOf": [{"pattern": f"(a|b)*a(a|b){{{count}}}"} for count in range(3, 40)]}),
        by_schema({"$ref": "#"}),
        by_schema({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
        by_schema({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        by_schema(json.loads('{"items":' * 300 + "{}" + "}" * 300)),
        {"grammar": "start: start\n"},
        {"grammar": "start: A0\n" + "".join(f"A{n}: A{n + 1} A{n + 1}\n" for n in range(30)) + 'A30: "x"\n'},
        {"regex": "("},
        {"regex": "(" * 5000},
    ],
)
def test_grammars_that_cannot_be_followed_are_the_requests_fault(served: Served, grammar: dict[str, Any]) -> None:
    for stream in (False, True):
        response = served.post("/v1/completions", {**PROMPT, **grammar, "stream": stream})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_grammar_of_very_many_symbols_is_followed_or_refused(served: Served) -> None:
    response = served.post("/v1/completions", {**PROMPT, "grammar": symbols(30)})
    assert response.status_code in (200, 400)


def test_honest_requests_are_answered_beside_grammars_that_take_long(served: Served) -> None:
    expected = served.post("/v1/completions", PROMPT).json()["choices"][0]["text"]
    hostile = [sent(served, {**PROMPT, **by_schema(SLOW), "user": str(at)}) for at in range(8)]
    for _ in range(5):
        assert served.post("/v1/completions", PROMPT).json()["choices"][0]["text"] == expected
    with_grammar = served.post("/v1/completions", {**PROMPT, "regex": "ab"})
    assert with_grammar.json()["choices"][0]["text"] == "ab"
    for connection in hostile:
        assert b"400 Bad Request" in connection.recv(1 << 16)
        connection.close()


def test_a_grammar_that_is_compiled_at_once_does_not_wait_for_those_that_take_long(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No limit ends the one that takes long; further ones wait, up to a bound, and new ones that are quick pass by."""
    monkeypatch.setattr(grammar_trial, "LIMITS", Limits(seconds=10_000, memory_bytes=8 << 30))
    with serving_here(model, most_waiting=2) as here:
        connections: list[socket.socket] = []
        refused = selectors.DefaultSelector()
        for at in range(5):  # one is tried, two wait, and the others are refused
            content = json.dumps({**PROMPT, **by_schema({**SLOW, "title": str(at)})})
            connections.append(here.connect())
            connections[-1].sendall(f"{HEAD}{len(content)}\r\n\r\n{content}".encode())
            while not (any(child.cpu_times().user > 1 for child in alive(psutil.Process())) or at):
                pass
        for connection in connections:
            refused.register(connection, selectors.EVENT_READ)
        for _ in range(2):  # whichever two of them came last to the queue
            connection = refused.select()[0][0].fileobj
            assert isinstance(connection, socket.socket)
            assert b"429 Too Many Requests" in connection.recv(1 << 16)
            refused.unregister(connection)
        for at in range(4):
            assert here.post({**PROMPT, "regex": f"a[b{at}]"}).status_code == 200
        for connection in connections:
            connection.close()


def test_a_client_that_leaves_takes_its_compilation_along(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """No limit ends it: the next grammar is compiled because those before were left."""
    monkeypatch.setattr(grammar_trial, "LIMITS", Limits(seconds=10_000, memory_bytes=8 << 30))
    with serving_here(model) as here:
        assert here.post({**PROMPT, "regex": "a[bc]"}).status_code == 200
        content = json.dumps({**PROMPT, **by_schema(SLOW)})
        connections = [here.connect() for _ in range(6)]
        for connection in connections:
            connection.sendall(f"{HEAD}{len(content)}\r\n\r\n{content}".encode())
        mine = psutil.Process()
        while not any(child.cpu_times().user > 0.5 for child in alive(mine)):
            pass
        for connection in connections:
            connection.close()
        assert here.post({**PROMPT, "regex": "a[bd]"}).status_code == 200


def alive(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children() if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_a_server_ends_beside_grammars_that_take_long(serve, bundle: Path) -> None:
    served = serve(bundle, "--grace", "0.2")
    connections = [sent(served, {**PROMPT, **by_schema(SLOW)}) for _ in range(6)]
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait() == 0
    for connection in connections:
        connection.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 10**400}, {"repetition_penalty": 10**400}, {"top_p": "1"}, {"seed": 2**64}, {"n": True},
        {"n": 10**400}, {"max_tokens": 1.0}, {"logprobs": 10**30}, {"stop": ["x" * 10**5]}, {"stop": "\ud800"},
        {"logit_bias": {"1": 10**400}}, {"logit_bias": {"1" * 5000: 1}}, {"stop_token_ids": [10**400]},
        {"prompt": "\udfff"}, {"prompt": [10**400]}, {"regex": "\ud800"}, {"exit_policy": "depth=" + "1" * 5000},
        {"logit_bias": {" 5": 1}}, {"logit_bias": {"\u0663": 1}}, {"logit_bias": {"05": 1}}, {"logit_bias": {"1_0": 1}},
        {"stop_token_ids": 0}, {"stop_token_ids": {}}, {"stream_options": []}, {"regex": "", "grammar": ""},
        {"model": "x" * 10**5}, {"frequency_penalty": [1]}, {"min_tokens": 10**400}, {"top_k": -(10**400)},
    ],
)  # fmt: skip
def test_numbers_and_texts_that_are_none_are_refused(served: Served, fields: dict[str, Any]) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{served.url}/v1/completions", content=json.dumps({**PROMPT, **fields}), headers=headers)
    assert response.status_code in (400, 404)
    assert len(response.json()["error"]["message"]) < 1000


@pytest.mark.parametrize(
    "text", ['{"temperature": NaN}', '{"temperature": -Infinity}', '{"top_k": 1' + "0" * 5000 + "}"]
)
def test_json_that_is_none_is_refused(served: Served, text: str) -> None:
    headers = {"content-type": "application/json"}
    response = httpx.post(f"{served.url}/v1/completions", content=text, headers=headers)
    assert response.status_code == 400 and "not valid JSON" in response.json()["error"]["message"]


def test_a_text_that_no_context_holds_is_refused_before_it_is_read(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = type(model).encode
    monkeypatch.setattr(type(model), "encode", lambda self, text: encoded.append(len(text)) or encode(self, text))
    with serving_here(model) as here:
        for path, body in (
            ("/v1/completions", {"prompt": "word " * 180_000}),
            ("/v1/completions", {"prompt": ["word", "word " * 170_000]}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 10_000}] * 17}),
        ):
            response = here.post(body, path)
            assert response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"
    assert max(encoded, default=0) < 100


def test_large_requests_leave_the_event_loop_free(served: Served) -> None:
    """A running reply and /health go on beside bodies of the largest size."""
    bodies = [
        {"prompt": "word " * 180_000}, {"prompt": [[5] * 100_000, [6] * 100_000]},
        {**PROMPT, "logit_bias": {str(at): 0 for at in range(90_000)}}, {**PROMPT, "stop": ["x" * 900_000]},
    ]  # fmt: skip
    threads = [threading.Thread(target=served.post, args=("/v1/completions", body)) for body in bodies]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert httpx.get(f"{served.url}/health").status_code == 200
