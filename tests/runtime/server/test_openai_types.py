"""Every field of OpenAI's requests takes every value that the request types of the `openai` package allow."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import chain
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints

import pytest
from openai.types import completion_create_params as of_completions
from openai.types.chat import completion_create_params as of_chats
from typing_extensions import is_typeddict

from rrt_edge.runtime import ContextFullError, Model
from rrt_edge.runtime.server.api_error import api_error
from rrt_edge.runtime.server.door import Ask
from rrt_edge.runtime.server.protocol import read_chat, read_completion
from rrt_edge.runtime.server.server_options import ServerOptions

pytest.importorskip("llguidance")
chat_types = of_chats.CompletionCreateParamsNonStreaming, of_chats.CompletionCreateParamsStreaming
completion_types = of_completions.CompletionCreateParamsNonStreaming, of_completions.CompletionCreateParamsStreaming
USER = {"role": "user", "content": "Hi"}
SERVED = ServerOptions("here", most_tokens=100)
TOOLS = [{"type": "function", "function": {"name": "a text"}}]
SCALARS: dict[Any, list[Any]] = {str: ["a text"], int: [1], float: [0.5], bool: [True, False], object: [{}]}
BOUNDS = {  # what the API's reference says beside the types
    "temperature": [0, 2], "top_p": [0, 1], "frequency_penalty": [-2, 2], "presence_penalty": [-2, 2],
    "seed": [-1, 0, 2**63 - 1, -(2**63)], "stop": ["", [], ["a", "b", "c", "d"]], "logit_bias": [{}, {"5": -100}],
    "top_logprobs": [0, 20],
}  # fmt: skip
BESIDE = {"top_logprobs": {"logprobs": True}, "tool_choice": {"tools": TOOLS}, "stream_options": {"stream": True}}
NOT_SUPPORTED = {  # values by field, as a pattern of what they are written as
    "audio": ".", "functions": ".", "web_search_options": ".", "function_call": r"^\{", "modalities": "audio",
    "messages": "'(image_url|input_audio|file)'", "tools": "'custom'",
    "tool_choice": r"custom|\[\{\}\]",
    "echo": "True", "suffix": ".",
}  # fmt: skip


def samples(hint: Any) -> Iterator[Any]:
    """JSON values of a type: each variant of each part at least once."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Required, NotRequired):
        yield from samples(arguments[0])
    elif origin in (Union, UnionType):
        yield from chain.from_iterable(map(samples, arguments))
    elif origin is Literal:
        yield from arguments
    elif hint is NoneType:
        yield None
    elif is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        optional = {Required: False, NotRequired: True}
        needed = [name for name, part in hints.items() if not optional.get(get_origin(part), not hint.__total__)]
        least = {name: next(samples(hints[name])) for name in needed}
        yield least
        for name, part in hints.items():
            yield from ({**least, name: value} for value in samples(part))
    elif origin is dict:
        yield from ({} if arguments[1] is object else {"5": value} for value in samples(arguments[1]))
    elif arguments:
        yield from ([value] for value in samples(arguments[0]))
    else:
        yield from SCALARS[hint]


def cases(*variants: Any) -> list[Any]:
    """The fields of request types, with the types of their values."""
    hints = {name: hint for kind in variants for name, hint in get_type_hints(kind, include_extras=True).items()}
    hints |= {"stream": bool}
    return [pytest.param(name, hint, id=name) for name, hint in hints.items() if name != "model"]


def check(read: Any, model: Model, body: dict[str, Any], name: str, hint: Any) -> None:
    for value in [None, *samples(hint), *BOUNDS.get(name, [])]:
        wrapped = [USER, *value, USER] if name == "messages" and value is not None else value
        if name in ("messages", "prompt") and value is None and hint is not NoneType:
            continue
        fields = {**body, **BESIDE.get(name, {}), name: wrapped}
        refused = value is not None and name in NOT_SUPPORTED and re.search(NOT_SUPPORTED[name], str(value))
        try:
            ask = read(fields, model, SERVED)
        except Exception as error:
            told = api_error(error)
            assert refused, (value, told)
            assert told.status == 400 and (told.param or "").startswith(name), (value, told)
        else:
            assert isinstance(ask, Ask) and not refused, value


@pytest.mark.parametrize(("name", "hint"), cases(*chat_types))
def test_chats_take_what_the_types_allow(templated: Model, name: str, hint: Any) -> None:
    check(read_chat, templated, {"messages": [USER]}, name, hint)


@pytest.mark.parametrize(("name", "hint"), cases(*completion_types))
def test_completions_take_what_the_types_allow(templated: Model, name: str, hint: Any) -> None:
    check(read_completion, templated, {"prompt": "The cat"}, name, hint)


def test_an_empty_prompt_is_the_beginning_of_a_text(templated: Model) -> None:
    for prompt in (None, ""):
        ask = read_completion({"prompt": prompt}, templated, SERVED)
        assert ask.prompts == ([templated.manifest.eos_token_ids[0]],)


def test_null_is_absent(templated: Model) -> None:
    fields = {"messages": [USER], "max_tokens": 3, "max_completion_tokens": None, "seed": None}
    assert read_chat(fields, templated, SERVED).sampling.max_tokens == 3
    assert read_completion({"prompt": "a", "max_tokens": None}, templated, SERVED).sampling.max_tokens == 16


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("exit_polcy", "exit_policy"), ("exitPolicy", "exit_policy"), ("return_depth", "return_depths"),
        ("topk", "top_k"), ("top-k", "top_k"), ("temprature", "temperature"), ("max_token", "max_tokens"),
        ("stop_token_id", "stop_token_ids"), ("regexp", "regex"),
    ],
)  # fmt: skip
def test_misspelt_fields_are_told(templated: Model, name: str, meant: str) -> None:
    for read, body in ((read_chat, {"messages": [USER]}), (read_completion, {"prompt": "a"})):
        with pytest.raises(Exception, match=f"{name}: no such field; did you mean {meant}\\?") as caught:
            read({**body, name: 1}, templated, SERVED)
        assert api_error(caught.value).param == name
        assert read({**body, name: None}, templated, SERVED).ignored == ()


def test_what_changes_nothing_is_ignored_and_told(templated: Model) -> None:
    others = ["mirostat", "repeat_penalty", "top_a", "cache_prompt", "max_new_tokens", "keep_alive", "n_probs"]
    body = {"messages": [USER], "user": "me", "store": False, "function_call": "auto", **dict.fromkeys(others, 1)}
    assert read_chat(body, templated, SERVED).ignored == ("user", "store", *others)
    many = {f"x{number}": 1 for number in range(40)}
    with pytest.raises(Exception, match="mirostat: one of 47 fields"):
        read_chat({**body, **many}, templated, SERVED)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"top_p": 2}, "top_p"), ({"seed": 0.5}, "seed"), ({"seed": -(2**63) - 1}, "seed"), ({"top_k": -1}, "top_k"),
        ({"exit_policy": "deep"}, "exit_policy"), ({"exit_policy": 5}, "exit_policy"), ({"n": 0}, "n"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"), ({"max_tokens": True}, "max_tokens"),
        ({"min_tokens": 9, "max_tokens": 3}, "min_tokens"), ({"stop": 5}, "stop"), ({"stop": ["x" * 2000]}, "stop"),
        ({"stop_token_ids": ["a"]}, "stop_token_ids"), ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 200}}, "logit_bias"), ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": 5}, "response_format.type"), ({"regex": "a", "grammar": "start: a"}, "grammar"),
        ({"regex": 5}, "regex"), ({"regex": "x" * 200_000}, "regex"), ({"top_logprobs": 3}, "top_logprobs"),
        ({"stream_options": 5}, "stream_options"), ({"stream": "yes"}, "stream"), ({"documents": 5}, "documents"),
        ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs"), ({"messages": []}, "messages"),
        ({"messages": [USER, {"role": "user"}]}, "messages[1].content"),
        ({"messages": [{"role": "user", "content": "x" * 10**6}]}, "messages"),
    ],
)  # fmt: skip
def test_errors_name_the_field(templated: Model, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(Exception) as caught:
        read_chat({"messages": [USER], **fields}, templated, SERVED)
    told = api_error(caught.value)
    assert (told.status, told.param) == (400, param)
    assert param.partition("[")[0] in str(told) or isinstance(caught.value, ContextFullError)
