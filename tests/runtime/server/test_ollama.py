"""Ollama's API as its own client sees it, over a socket."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import ollama
import pytest

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from rrt_edge.runtime import Model
from tests.caller import ARGUMENTS, WORDS
from tests.serving import Served, answer

QUESTION = [{"role": "user", "content": "What does os.path.join do?"}]
SEVERAL = [*QUESTION, {"role": "assistant", "content": "It joins."}, {"role": "user", "content": "And heappush?"}]
AGE = {
    "type": "function",
    "function": {
        "name": "age",
        "description": "of someone",
        "parameters": {"type": "object", "properties": {"of": {"type": "string"}}, "required": ["of"]},
    },
}


@pytest.fixture(scope="module")
def served(serve, demo: Path) -> Served:
    return serve(demo, "--name", "pydoc", "--alias", "other:1b")


@pytest.fixture(scope="module")
def client(served: Served):
    with ollama.Client(host=served.url) as ours:
        yield ours


@pytest.fixture(scope="module")
def calling(serve, caller: Path):
    with ollama.Client(host=serve(caller, "--name", "caller").url) as ours:
        yield ours


@pytest.fixture(scope="module")
def thinking(serve, thinker: Path):
    with ollama.Client(host=serve(thinker, "--name", "thinker").url) as ours:
        yield ours


def test_programs_find_the_model(client, served: Served) -> None:
    listed = client.list().models
    assert [one.model for one in listed] == ["pydoc:latest", "other:1b"]
    assert listed[0].size > 1e6 and len(listed[0].digest) == 64 and listed[0].modified_at.year > 2024
    assert listed[0].details.family == "llama" and listed[0].details.quantization_level == "Q4_0"
    shown = client.show("pydoc")
    assert shown.capabilities == ["completion"] and "messages" in shown.template
    assert shown.modelinfo["llama.context_length"] == 512 and shown.modelinfo["rrt_edge.loops"] == 2
    assert [int(part) for part in httpx.get(f"{served.url}/api/version").json()["version"].split(".")]


def test_chats_say_what_the_model_says(client, model: Model) -> None:
    for messages in (QUESTION, SEVERAL):
        whole = client.chat("pydoc:latest", messages)
        assert whole.message.role == "assistant" and whole.message.content == answer(model, messages)
        assert whole.done and whole.done_reason == "stop" and whole.model == "pydoc:latest"
        assert whole.prompt_eval_count == len(model.encode_chat(messages)) and whole.eval_count > 5
        assert 0 < whole.prompt_eval_duration <= whole.total_duration and whole.eval_duration > 0
        *pieces, last = client.chat("pydoc", messages, stream=True)
        assert "".join(piece.message.content for piece in pieces) == whole.message.content
        assert not any(piece.done for piece in pieces) and last.done and last.message.content == ""
        assert (last.done_reason, last.eval_count) == ("stop", whole.eval_count)


def test_the_api_streams_unless_it_is_told_not_to(served: Served) -> None:
    with httpx.stream("POST", f"{served.url}/api/chat", json={"model": "pydoc", "messages": QUESTION}) as response:
        lines = [json.loads(line) for line in response.iter_lines()]
    assert response.headers["content-type"] == "application/x-ndjson" and len(lines) > 5
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[-1]["rrt_edge"]["mean_depth"] >= 1


def test_the_oldest_messages_make_room(served: Served, client) -> None:
    said = [
        {"role": role, "content": f"{QUESTION[0]['content']} " * 4} for _ in range(20) for role in ("user", "assistant")
    ]
    whole = client.chat("pydoc", [*said, *QUESTION], options={"num_predict": 20})
    assert whole.message.content and whole.prompt_eval_count < 512
    body = {"model": "pydoc", "messages": [*said, *QUESTION], "truncate": False}
    assert "context" in httpx.post(f"{served.url}/api/chat", json=body).json()["error"]


def test_options_steer_the_reply(client, model: Model) -> None:
    cut = client.chat("pydoc", QUESTION, options={"num_predict": 5, "num_ctx": 4096, "exit_policy": "full"})
    assert (cut.done_reason, cut.eval_count) == ("length", 5)
    drawn = client.chat("pydoc", QUESTION, options={"temperature": 1.5, "seed": 7, "top_k": 0, "num_predict": -1})
    assert drawn.message.content == answer(model, QUESTION, temperature=1.5, seed=7, top_k=0)
    told = client.chat("pydoc", QUESTION, options={"stop": ["."], "repeat_penalty": 1.1, "mirostat": 1})
    assert told.message.content == answer(model, QUESTION, stop=(".",), repetition_penalty=1.1)


def test_questions_go_through_the_template_and_raw_texts_do_not(client, model: Model) -> None:
    asked = client.generate("pydoc", QUESTION[0]["content"])
    assert asked.response == answer(model, QUESTION) and asked.done_reason == "stop"
    pieces = client.generate("pydoc", QUESTION[0]["content"], stream=True)
    assert "".join(piece.response for piece in pieces) == asked.response
    raw = client.generate("pydoc", "What does", raw=True, options={"num_predict": 6, "exit_policy": "full"})
    expected = model.generate("What does", max_tokens=6, raw=True, exit_policy="full")
    assert (raw.response, raw.done_reason) == (expected.text, expected.finish_reason)
    with pytest.raises(ollama.ResponseError, match="knows the roles user and assistant, not system"):
        client.generate("pydoc", "Hi", system="Be brief.")


def test_a_request_without_words_only_loads(client) -> None:
    assert client.generate("pydoc").done_reason == "load"
    assert client.generate("pydoc", keep_alive=0).done_reason == "unload"
    assert client.chat("pydoc").done_reason == "load"


def test_a_format_is_kept(client) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    options = {"num_predict": 200}
    assert isinstance(json.loads(client.chat("pydoc", QUESTION, format="json", options=options).message.content), dict)
    found = json.loads(client.generate("pydoc", "Hi", format=schema, options=options).response)
    assert isinstance(found["a"], int)


def test_logprobs(client) -> None:
    whole = client.chat("pydoc", QUESTION, logprobs=True, top_logprobs=2, options={"num_predict": 4})
    assert len(whole.logprobs) == 4 and all(len(one.top_logprobs) == 2 for one in whole.logprobs)
    assert "".join(one.token for one in whole.logprobs) == whole.message.content
    raw = client.generate("pydoc", "What", raw=True, logprobs=True, options={"num_predict": 4})
    assert len(raw.logprobs) == raw.eval_count


def test_calls_and_what_they_return(calling) -> None:
    asked = [{"role": "user", "content": "How old is Ann?"}]
    whole = calling.chat("caller", asked, tools=[AGE])
    both = [("age", json.loads(arguments)) for arguments in ARGUMENTS]
    assert whole.message.content == WORDS and whole.done_reason == "stop"
    assert [(call.function.name, call.function.arguments) for call in whole.message.tool_calls] == both
    pieces = list(calling.chat("caller", asked, tools=[AGE], stream=True))
    calls = [call for piece in pieces for call in piece.message.tool_calls or ()]
    assert [(call.function.name, call.function.arguments) for call in calls] == both
    assert "".join(piece.message.content for piece in pieces) == WORDS
    returned = [{"role": "tool", "tool_name": "age", "content": age} for age in ("9", "30")]
    assert calling.chat("caller", [*asked, whole.message, *returned], tools=[AGE]).message.content


def test_thoughts_stand_beside_the_answer(thinking) -> None:
    whole = thinking.chat("thinker", QUESTION)
    assert whole.message.thinking and whole.message.thinking not in whole.message.content
    pieces = list(thinking.chat("thinker", QUESTION, stream=True))
    assert "".join(piece.message.thinking or "" for piece in pieces) == whole.message.thinking
    assert "".join(piece.message.content for piece in pieces) == whole.message.content
    assert thinking.generate("thinker", "Hi").thinking == whole.message.thinking


@pytest.mark.parametrize(
    ("path", "fields", "status", "told"),
    [
        ("chat", {"model": "gemma3"}, 404, "model 'gemma3': not served here"),
        ("show", {"model": "gemma3"}, 404, "model 'gemma3': not served here"),
        ("chat", {"options": {"num_predict": "x"}}, 400, "options.num_predict 'x': must be a whole number"),
        ("chat", {"options": {"temperature": -1}}, 400, "options.temperature -1"),
        ("chat", {"options": {"repeat_penalty": -1}}, 400, "options.repeat_penalty -1"),
        ("chat", {"options": 3}, 400, "options 3: must be an object"),
        ("chat", {"options": {"temprature": 1}}, 400, "temprature: no such field; did you mean temperature?"),
        ("chat", {"format": "xml"}, 400, "format 'xml'"),
        ("chat", {"format": {"type": 3}}, 400, "json-schema"),
        ("chat", {"messages": [{"role": "user", "content": "Hi", "images": ["aGk="]}]}, 400, "messages[0].images"),
        ("chat", {"messages": "Hi"}, 400, "messages: must be a list"),
        ("chat", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("chat", {"think": 3}, 400, "think 3"),
        ("chat", {"tools": [AGE]}, 400, "tools"),
        ("chat", {"mesages": []}, 400, "mesages: no such field; did you mean messages?"),
        ("generate", {"prompt": "word " * 900, "truncate": False}, 400, "tokens"),
        ("generate", {"prompt": "a", "suffix": "b"}, 400, "suffix: not supported"),
        ("generate", {"prompt": "a", "context": [3]}, 400, "context: not supported"),
        ("generate", {"prompt": 3}, 400, "prompt: must be a text"),
        ("generate", {"prompt": "a", "raw": True, "system": "b"}, 400, "system: does not go with raw"),
    ],
)
def test_errors_name_the_field(served: Served, path: str, fields: dict[str, object], status: int, told: str) -> None:
    body = {"model": "pydoc", **({"messages": QUESTION} if path == "chat" else {}), **fields}
    response = httpx.post(f"{served.url}/api/{path}", json=body)
    assert response.status_code == status
    assert set(response.json()) == {"error"} and told in response.json()["error"]


def test_its_errors_reach_the_client(client) -> None:
    with pytest.raises(ollama.ResponseError, match="not served here") as error:
        client.chat("gemma3", QUESTION)
    assert error.value.status_code == 404


def test_several_clients_at_once(served: Served, client) -> None:
    async def ask() -> list[str]:
        async with ollama.AsyncClient(host=served.url) as apart:
            replies = await asyncio.gather(*(apart.chat("pydoc", QUESTION) for _ in range(3)))
        return [reply.message.content for reply in replies]

    assert asyncio.run(ask()) == [client.chat("pydoc", QUESTION).message.content] * 3
