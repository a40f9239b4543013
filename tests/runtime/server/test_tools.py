"""Calls of functions as real clients see them: openai's and LangChain's, over a socket."""

from __future__ import annotations

import json
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import openai
import pytest
from langchain_core.messages import AIMessageChunk, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel, Field

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")
pytest.importorskip("llguidance")

from tests.caller import ANSWER, ARGUMENTS, LLAMA_TEMPLATE, WORDS, make_tokenizer
from tests.serving import Served
from tests.thinker import changed


class Person(BaseModel):
    """A person."""

    of: str = Field(max_length=5)
    exact: bool = False


USER = {"role": "user", "content": "How old is Ann?"}
PARAMETERS = {
    "type": "object",
    "properties": {"of": {"type": "string", "maxLength": 5}, "exact": {"type": "boolean"}},
    "required": ["of"],
    "additionalProperties": False,
}
AGE = {"type": "function", "function": {"name": "age", "description": "of someone", "parameters": PARAMETERS}}
TIME = {"type": "function", "function": {"name": "time", "parameters": {**PARAMETERS, "required": ["exact"]}}}


@pytest.fixture(scope="module")
def served(serve, caller: Path) -> Served:
    return serve(caller, "--name", "caller")


@pytest.fixture(scope="module")
def llama(serve, caller: Path, tmp_path_factory: pytest.TempPathFactory) -> Served:
    return serve(changed(caller, tmp_path_factory.mktemp("llama") / "b", template=LLAMA_TEMPLATE), "--name", "caller")


def client_of(served: Served) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0)


def ask(served: Served, **fields: Any) -> Any:
    given = {"model": "caller", "messages": [USER], "tools": [AGE, TIME], "max_tokens": 200, **fields}
    return client_of(served).chat.completions.create(**given)


def calls_in(message: Any) -> list[tuple[str, Any]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


BOTH = [("age", json.loads(arguments)) for arguments in ARGUMENTS]


def test_calls_stand_beside_the_words(served: Served) -> None:
    choice = ask(served).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content == WORDS
    assert calls_in(choice.message) == BOTH
    assert [call.type for call in choice.message.tool_calls] == ["function"] * 2
    assert len({call.id for call in choice.message.tool_calls}) == 2


def test_markers_may_be_special_tokens(serve, caller: Path, tmp_path: Path) -> None:
    """Decoding skips them."""
    special = changed(caller, tmp_path / "bundle", make_tokenizer(["</tool_call>"]))
    message = ask(serve(special, "--name", "caller")).choices[0].message
    assert (calls_in(message), message.content) == (BOTH, WORDS)


def test_streams_tell_calls_piece_by_piece(served: Served) -> None:
    chunks = [chunk.choices[0] for chunk in ask(served, stream=True)]
    assert "".join(chunk.delta.content or "" for chunk in chunks) == WORDS
    assert chunks[-1].finish_reason == "tool_calls" and chunks[0].delta.role == "assistant"
    pieces = [piece for chunk in chunks for piece in chunk.delta.tool_calls or []]
    first = [piece for piece in pieces if piece.id]
    assert [(piece.index, piece.function.name) for piece in first] == [(0, "age"), (1, "age")]
    for index, arguments in enumerate(ARGUMENTS):
        told = [piece.function.arguments for piece in pieces if piece.index == index]
        assert "".join(told) == arguments and len(told) > 2
    with client_of(served).chat.completions.stream(model="caller", messages=[USER], tools=[AGE]) as stream:
        assert calls_in(stream.get_final_completion().choices[0].message) == BOTH


def test_what_functions_return_is_answered(served: Served, llama: Served) -> None:
    for server in (served, llama):
        message = ask(server, parallel_tool_calls=False).choices[0].message
        (call,) = message.tool_calls
        answer = {"role": "tool", "tool_call_id": call.id, "content": "9"}
        final = ask(server, messages=[USER, message.model_dump(exclude_none=True), answer]).choices[0]
        assert (final.message.content, final.finish_reason, final.message.tool_calls) == (ANSWER, "stop", None)
        with pytest.raises(openai.BadRequestError, match="answers must follow") as caught:
            ask(server, messages=[USER, message.model_dump(exclude_none=True)])
        assert caught.value.param == "messages[1].tool_calls"


def test_one_call_alone_where_no_more_may_be(served: Served) -> None:
    whole = ask(served, parallel_tool_calls=False)
    assert calls_in(whole.choices[0].message) == BOTH[:1] and whole.choices[0].finish_reason == "tool_calls"
    assert whole.usage.completion_tokens < ask(served).usage.completion_tokens
    forced = ask(served, parallel_tool_calls=False, tool_choice="required").choices[0].message
    assert len(forced.tool_calls) == 1


def test_none_and_no_tools_are_words_alone(served: Served) -> None:
    for fields in (
        {"tool_choice": "none"},
        {"tools": openai.NOT_GIVEN},
        {"tools": openai.NOT_GIVEN, "tool_choice": "auto"},
    ):
        message = ask(served, **fields).choices[0].message
        assert message.tool_calls is None and "<tool_call>" in message.content


@pytest.mark.parametrize("server", ["served", "llama"])
def test_calls_can_be_forced(server: str, request: pytest.FixtureRequest) -> None:
    here: Served = request.getfixturevalue(server)
    named = {"type": "function", "function": {"name": "time"}}
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]}}
    for choice, names in (("required", {"age", "time"}), (named, {"time"}), (allowed, {"time"})):
        asked = {"tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 90}
        completions = client_of(here).chat.completions
        with completions.stream(model="caller", messages=[USER], tools=[AGE, TIME], **asked) as events:
            streamed = events.get_final_completion()
        for reply in (ask(here, **asked), streamed):
            (made,) = reply.choices
            ((name, arguments),) = calls_in(made.message)
            assert name in names and made.message.content is None
            assert arguments.keys() >= ({"of"} if name == "age" else {"exact"})
            assert made.finish_reason == "tool_calls"


def test_calls_of_llama_3_are_told(llama: Served) -> None:
    choice = ask(llama).choices[0]
    assert calls_in(choice.message) == BOTH[:1] and choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    other = ask(llama, tools=[TIME]).choices[0]  # it names a function that there is not
    assert other.message.tool_calls is None and other.message.content == '{"name": "age", "parameters": {"of": "Ann"}}'


def test_an_answer_of_a_form_may_be_a_call_instead(served: Served) -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}, "required": ["age"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    message = ask(served, response_format=form).choices[0].message
    assert message.tool_calls or json.loads(message.content)
    with pytest.raises(openai.BadRequestError, match="tool_choice: a reply that must call") as caught:
        ask(served, response_format=form, tool_choice="required")
    assert caught.value.param == "tool_choice"


def test_what_is_wrong_with_tools_is_named(served: Served) -> None:
    nobody = {"type": "function", "function": {"name": "nobody"}}
    for fields, param in (
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [AGE, {"type": "function"}]}, "tools[1].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": 5}}]}, "tools[0].function.parameters"),
        ({"tool_choice": nobody}, "tool_choice"), ({"tool_choice": "some"}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "x", "parameters": {"type": "no"}}}],
          "tool_choice": "required"}, "tools"),
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as caught:
            ask(served, **fields)
        assert caught.value.param == param


def test_langchain_binds_tools(served: Served) -> None:
    @tool(args_schema=Person)
    def age(of: str, exact: bool = False) -> int:
        """The age of someone."""
        return 9

    chat = ChatOpenAI(base_url=f"{served.url}/v1", api_key="none", model="caller", max_retries=0)
    bound = chat.bind_tools([age])
    message = bound.invoke("How old is Ann?")
    assert [(call["name"], call["args"]) for call in message.tool_calls] == BOTH
    streamed = reduce(add, bound.stream("How old is Ann?"))
    assert isinstance(streamed, AIMessageChunk)
    assert [(call["name"], call["args"]) for call in streamed.tool_calls] == BOTH
    answers = [ToolMessage(str(age.invoke(call["args"])), tool_call_id=call["id"]) for call in message.tool_calls]
    assert bound.invoke([("user", "How old is Ann?"), message, *answers]).content == ANSWER
    forced = chat.bind_tools([age], tool_choice="any").invoke("How old is Ann?", max_tokens=300)
    assert forced.tool_calls[0]["name"] == "age"


@pytest.mark.parametrize("server", ["served", "llama"])
def test_langchain_structures_output_by_a_call(server: str, request: pytest.FixtureRequest) -> None:
    here: Served = request.getfixturevalue(server)
    chat = ChatOpenAI(base_url=f"{here.url}/v1", api_key="none", model="caller", max_retries=0, max_tokens=200)
    person = chat.with_structured_output(Person, method="function_calling").invoke("Who is nine?")
    assert isinstance(person, Person)
