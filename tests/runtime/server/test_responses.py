"""The Responses API as openai's client sees it, over a socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")
pytest.importorskip("llguidance")

from rrt_edge.runtime import Model
from tests.caller import ARGUMENTS, WORDS
from tests.serving import Served, answer

TEXT = "What does os.path.join do?"
QUESTION = [{"role": "user", "content": TEXT}]
AGE = {
    "type": "function",
    "name": "age",
    "description": "of someone",
    "strict": True,
    "parameters": {
        "type": "object",
        "properties": {"of": {"type": "string", "maxLength": 5}},
        "required": ["of"],
        "additionalProperties": False,
    },
}
CALLS = [("age", json.loads(arguments)) for arguments in ARGUMENTS]


@pytest.fixture(scope="module")
def served(serve, demo: Path) -> Served:
    return serve(demo, "--name", "pydoc")


LONG = [{"role": role, "content": f"{TEXT} " * 4} for _ in range(20) for role in ("user", "assistant")] + QUESTION


def client_of(served: Served):
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(served: Served):
    with client_of(served) as ours:
        yield ours


@pytest.fixture(scope="module")
def calling(serve, caller: Path):
    with client_of(serve(caller, "--name", "caller")) as ours:
        yield ours


@pytest.fixture(scope="module")
def thinking(serve, thinker: Path):
    with client_of(serve(thinker, "--name", "thinker")) as ours:
        yield ours


def test_a_text_is_answered(client: openai.OpenAI, model: Model) -> None:
    response = client.responses.create(model="pydoc", input=TEXT)
    assert response.output_text == answer(model, QUESTION)
    assert response.status == "completed" and response.error is None and response.incomplete_details is None
    (message,) = response.output
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    prompt = len(model.encode_chat(QUESTION))
    assert response.usage.input_tokens == prompt
    assert response.usage.total_tokens == prompt + response.usage.output_tokens
    assert response.store is False and response.metadata == {}
    assert response.model_extra["rrt_edge"]["mean_depth"] >= 1


def test_conversations_go_on_by_what_was_put_out(client: openai.OpenAI, model: Model) -> None:
    first = client.responses.create(model="pydoc", input=[{"role": "user", "content": TEXT}])
    more = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "And heapq.heappush?"}]}]
    second = client.responses.create(model="pydoc", input=[*QUESTION, *first.output, *more])
    said = {"role": "assistant", "content": first.output_text}
    assert second.output_text == answer(model, [*QUESTION, said, {"role": "user", "content": "And heapq.heappush?"}])


def test_instructions_are_the_systems(calling: openai.OpenAI) -> None:
    plain = calling.responses.create(model="caller", input="Hi")
    told = calling.responses.create(model="caller", input="Hi", instructions="Be brief.", metadata={"a": "b"})
    both = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert told.usage.input_tokens == calling.responses.create(model="caller", input=both).usage.input_tokens
    assert told.usage.input_tokens > plain.usage.input_tokens
    assert told.instructions == "Be brief." and told.metadata == {"a": "b"}


def test_events_build_the_response(client: openai.OpenAI, model: Model) -> None:
    events = list(client.responses.create(model="pydoc", input=TEXT, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"
    ]  # fmt: skip
    deltas = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert deltas == events[-4].text == events[-1].response.output_text == answer(model, QUESTION)
    with client.responses.stream(model="pydoc", input=TEXT) as stream:
        assert stream.until_done().get_final_response().output_text == deltas


def test_a_reply_that_is_cut_is_incomplete(client: openai.OpenAI) -> None:
    cut = client.responses.create(model="pydoc", input=TEXT, max_output_tokens=4)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert cut.usage.output_tokens == 4 and cut.output[0].status == "incomplete" and cut.max_output_tokens == 4
    *_, last = client.responses.create(model="pydoc", input=TEXT, max_output_tokens=4, stream=True)
    assert last.type == "response.incomplete" and last.response.output_text == cut.output_text


def test_the_oldest_items_make_room_where_that_is_asked_for(client: openai.OpenAI) -> None:
    response = client.responses.create(model="pydoc", input=LONG, truncation="auto", max_output_tokens=20)
    assert response.output_text and response.truncation == "auto" and response.usage.input_tokens < 512
    assert response.model_extra["rrt_edge"]["messages_left_out"] > 10


def test_our_fields_and_logprobs(client: openai.OpenAI, model: Model) -> None:
    ours = {"exit_policy": "depth=1", "return_depths": True, "seed": 3}
    asked = {"model": "pydoc", "input": TEXT, "temperature": 1.2, "max_output_tokens": 6, "extra_body": ours}
    response = client.responses.create(**asked, include=["message.output_text.logprobs"], top_logprobs=2)
    tokens = response.model_extra["rrt_edge"]["tokens"]
    assert [token["depth"] for token in tokens] == [1] * 6
    logprobs = response.output[0].content[0].logprobs
    assert len(logprobs) == 6 and all(len(entry.top_logprobs) == 2 for entry in logprobs)
    assert "".join(entry.token for entry in logprobs) == response.output_text
    *_, last = client.responses.create(**asked, include=["message.output_text.logprobs"], stream=True)
    assert len(last.response.output[0].content[0].logprobs) == 6


class Age(BaseModel):
    age: int


def test_a_format_is_kept(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(model="pydoc", input=TEXT, text_format=Age, max_output_tokens=100)
    assert isinstance(parsed.output_parsed.age, int)
    asked: dict[str, Any] = {"model": "pydoc", "input": TEXT, "max_output_tokens": 60}
    free = client.responses.create(**asked, text={"format": {"type": "json_object"}})
    assert isinstance(json.loads(free.output_text), dict)


def test_calls_are_items_and_their_outputs_go_back(calling: openai.OpenAI) -> None:
    asked: list[Any] = [{"role": "user", "content": "How old is Ann?"}]
    response = calling.responses.create(model="caller", input=asked, tools=[AGE])
    message, *calls = response.output
    assert message.content[0].text == WORDS and [call.type for call in calls] == ["function_call"] * 2
    assert [(call.name, json.loads(call.arguments)) for call in calls] == CALLS
    outputs = [{"type": "function_call_output", "call_id": call.call_id, "output": "9"} for call in calls]
    again = calling.responses.create(model="caller", input=[*asked, *response.output, *outputs], tools=[AGE])
    assert again.status in ("completed", "incomplete") and again.usage.input_tokens > response.usage.input_tokens


def test_calls_as_events(calling: openai.OpenAI) -> None:
    events = list(calling.responses.create(model="caller", input="How old is Ann?", tools=[AGE], stream=True))
    whole = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.name, json.loads(event.arguments)) for event in whole] == CALLS
    for event in whole:
        pieces = [piece.delta for piece in events if piece.type == "response.function_call_arguments.delta"
                  and piece.item_id == event.item_id]  # fmt: skip
        assert "".join(pieces) == event.arguments
    final = events[-1].response
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert [item.id for item in final.output] == added


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "age"}])
def test_a_call_can_be_forced(client: openai.OpenAI, calling: openai.OpenAI, choice: Any) -> None:
    response = calling.responses.create(
        model="caller", input="Hi", tools=[AGE], tool_choice=choice, parallel_tool_calls=False, max_output_tokens=80
    )
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert call.name == "age" and set(json.loads(call.arguments)) == {"of"}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "age"}]}
    again = calling.responses.create(
        model="caller", input="Hi", tools=[AGE], tool_choice=allowed, max_output_tokens=80, parallel_tool_calls=False
    )
    assert again.output[-1].name == "age"


def test_thoughts_are_items(thinking: openai.OpenAI) -> None:
    response = thinking.responses.create(model="thinker", input="Hi")
    thought, _ = response.output
    assert thought.type == "reasoning" and thought.content[0].text and response.output_text
    assert response.usage.output_tokens_details.reasoning_tokens > 0
    events = list(thinking.responses.create(model="thinker", input="Hi", stream=True))
    deltas = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert deltas == thought.content[0].text
    more = [{"role": "user", "content": "Hi"}, *response.output, {"role": "user", "content": "Again"}]
    assert thinking.responses.create(model="thinker", input=more).output_text


@pytest.mark.parametrize(
    ("fields", "param", "told"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "nothing is stored here"),
        ({"background": True}, "background", "not supported"),
        ({"conversation": "c"}, "conversation", "nothing is stored here"),
        ({"truncation": "left"}, "truncation", "must be auto or disabled"),
        ({"input": LONG}, "input", "tokens"),
        ({"input": []}, "input", "must be a text, or a list of items"),
        ({"input": [3]}, "input[0]", "must be an object"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "nothing is stored here"),
        ({"input": [{"type": "computer_call"}]}, "input[0].type", "not supported"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]", "only text"),
        ({"input": [{"type": "function_call", "name": "a"}]}, "input[0]", "needs name and arguments"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "only functions"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "must be a text"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens 0: must be a whole number"),
        ({"temperature": -1}, "temperature", "temperature -1"),
        (
            {"text": {"format": {"type": "xml"}}},
            "text.format.type",
            "text.format.type: must be text, json_object or json_schema",
        ),
        ({"text": 3}, "text", "must be an object"),
        ({"include": "x"}, "include", "must be a list"),
        ({"instructions": 3}, "instructions", "must be a text"),
        ({"max_output_token": 3}, "max_output_token", "did you mean max_output_tokens?"),
        ({"input": None, "messages": QUESTION}, "input", "must be a text, or a list of items"),
        ({"model": "other"}, "model", "not served here"),
    ],
)
def test_errors_name_the_field(served: Served, fields: dict[str, Any], param: str, told: str) -> None:
    response = httpx.post(f"{served.url}/v1/responses", json={"model": "pydoc", "input": TEXT, **fields})
    assert response.status_code in (400, 404)
    error = response.json()["error"]
    assert error["param"] == param and told in error["message"]


def test_what_changes_nothing_is_told(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"store": True, "reasoning": {"effort": "low"}, "service_tier": "auto", "user": "me"}
    response = client.responses.create(model="pydoc", input=TEXT, max_output_tokens=2, **asked)
    assert set(response.model_extra["rrt_edge"]["ignored"]) == {"store", "reasoning", "service_tier", "user"}
