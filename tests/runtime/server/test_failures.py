"""Whatever fails in a request ends it with the API's error, and no other; /health knows when the engine is not well."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from typing import Any

import pytest

from rrt_edge.runtime import BadInputError, Engine, Model
from rrt_edge.runtime.decoding.detokenizer import TextStream
from rrt_edge.runtime.decoding.sampler import Sampler
from rrt_edge.runtime.loaded import Loaded
from rrt_edge.runtime.server import worker as worker_module
from rrt_edge.runtime.server.answers import OpenAIAnswers
from rrt_edge.runtime.server.app import create_app
from rrt_edge.runtime.server.server_options import ServerOptions
from tests.serving import serving_here

BODY = {"prompt": [20, 30, 40], "max_tokens": 4}


class Panic(BaseException):
    """As a panic of a library in Rust."""


ERRORS = [ValueError("odd"), Panic("gone"), MemoryError(), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError()]


def is_api_error(payload: Any, kind: str = "server_error") -> bool:
    error = payload["error"]
    return bool(error["type"] == kind and error["message"] and "\n" not in error["message"])


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_what_any_part_raises_is_an_error_in_json_and_the_server_goes_on(
    model: Model, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def failing(*arguments: Any, **named: Any) -> Any:
        raise error

    with serving_here(model) as served:
        expected = served.post(BODY).json()["choices"][0]["text"]
        for kind, name in (
            (Sampler, "pick"), (TextStream, "push"), (Sampler, "picked"), (Engine, "prepare"), (Engine, "step"),
            (Engine, "_choose"), (Loaded, "checked_ids"), (OpenAIAnswers, "whole"), (worker_module.Worker, "_step"),
        ):  # fmt: skip
            with monkeypatch.context() as patch:
                patch.setattr(kind, name, failing)
                response = served.post(BODY)
                assert response.status_code == 500 and is_api_error(response.json()), name
                streamed = served.client.post("/v1/completions", json={**BODY, "stream": True})
                if name != "whole":
                    events = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: {")]
                    told = json.loads(events[-1] if events else streamed.text)
                    assert is_api_error(told), (name, streamed.text)
            assert served.client.get("/health").json() == {"status": "ok"}
            assert served.post(BODY).json()["choices"][0]["text"] == expected, name


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/v1/chat"])
def test_unknown_pages_and_methods_are_the_apis_errors(model: Model, path: str) -> None:
    with serving_here(model) as served:
        missing, wrong = served.client.get(path), served.client.get("/v1/completions")
        assert missing.status_code == 404 and is_api_error(missing.json(), "not_found_error")
        assert wrong.status_code == 405 and is_api_error(wrong.json(), "invalid_request_error")
        assert wrong.headers["allow"] == "POST"


def test_names_and_origins_that_are_kept_out_get_the_apis_error(model: Model) -> None:
    with serving_here(model, origins=("https://friend.example",)) as served:
        stranger = served.client.get("/v1/models", headers={"Host": "stranger.example"})
        nobody = served.client.get("/v1/models", headers={"Host": ""})
        asked = {"Origin": "https://stranger.example", "Access-Control-Request-Method": "DELETE"}
        preflight = served.client.options("/v1/completions", headers=asked)
        for response in (stranger, nobody, preflight):
            assert response.status_code == 400 and is_api_error(response.json(), "invalid_request_error")
        assert preflight.headers["vary"].startswith("Origin") and "access-control-allow-origin" not in preflight.headers
        friend = served.client.options("/v1/completions", headers={**asked, "Origin": "https://friend.example"})
        assert friend.headers["access-control-allow-origin"] == "https://friend.example"
        assert served.client.get("/metrics").headers["content-type"].startswith("text/plain")


def test_a_program_that_cannot_start_processes_cannot_serve(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BadInputError, match="which a frozen program, or one that embeds Python, cannot start"):
        create_app(model, ServerOptions(name="frozen"))


def test_health_tells_of_an_engine_that_stands_still_or_has_ended(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    standing, go_on, step = threading.Event(), threading.Event(), Engine.step

    def still(self: Engine) -> Any:
        standing.set()
        go_on.wait(60)
        return step(self)

    with serving_here(model) as served:
        monkeypatch.setattr(worker_module, "STALLED", 0.0)
        assert served.client.get("/health").status_code == 200  # nothing runs
        monkeypatch.setattr(Engine, "step", still)
        asking = threading.Thread(target=served.post, args=(BODY,))
        asking.start()
        assert standing.wait(60)
        response = served.client.get("/health")
        assert response.status_code == 503 and "no step" in response.json()["message"]
        go_on.set()
        asking.join()
        monkeypatch.undo()
        assert served.client.get("/health").status_code == 200
        monkeypatch.setattr(threading.Thread, "is_alive", lambda self: not self.name.startswith("rrt-edge engine"))
        response = served.client.get("/health")
        assert response.status_code == 503 and "ended" in response.json()["message"]
        assert served.post(BODY).status_code == 500
        monkeypatch.undo()
