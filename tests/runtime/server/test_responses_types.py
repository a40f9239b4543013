"""Every field of the Responses API takes every value that the request types of the `openai` package allow."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import response_create_params

from rrt_edge.runtime import Model
from rrt_edge.runtime.server.api_error import api_error
from rrt_edge.runtime.server.door import Ask
from rrt_edge.runtime.server.responses_requests import read_response
from tests.runtime.server.test_openai_types import BOUNDS, SERVED, USER, cases, samples

pytest.importorskip("llguidance")
TYPES = (
    response_create_params.ResponseCreateParamsNonStreaming,
    response_create_params.ResponseCreateParamsStreaming,
)
TOOLS = [{"type": "function", "name": "a text", "parameters": {}, "strict": False}]
BESIDE = {"tool_choice": {"tools": TOOLS}}
NOTHING_STORED = ("previous_response_id", "conversation", "prompt")
TEXT_PARTS = ("input_text", "output_text", "refusal", "text", "reasoning_text")


def is_supported(name: str, value: Any) -> bool:
    """Whether a value asks for what the server has: texts, functions, and nothing that is stored."""
    if value is None:
        return True
    if name == "input":
        return isinstance(value, str) or all(map(is_item, value))
    if name == "tools":
        return all(tool.get("type") == "function" for tool in value)
    if name == "tool_choice":
        return isinstance(value, str) or (value["type"] == "function")
    return {"background": value is False, "context_management": value == []}.get(name, name not in NOTHING_STORED)


def is_item(item: dict[str, Any]) -> bool:
    kind = item.get("type", "message" if "role" in item else None)
    content = item.get("output" if kind == "function_call_output" else "content")
    parts = content if isinstance(content, list) else []
    known = ("message", "reasoning", "function_call", "function_call_output")
    return kind in known and all(part["type"] in TEXT_PARTS for part in parts)


@pytest.mark.parametrize(("name", "hint"), cases(*TYPES))
def test_responses_take_what_the_types_allow(templated: Model, name: str, hint: Any) -> None:
    for value in [None, *samples(hint), *BOUNDS.get(name, [])]:
        if name == "input" and value is None:
            continue
        wrapped = [USER, *value, USER] if name == "input" and isinstance(value, list) else value
        fields = {"input": "Hi", **BESIDE.get(name, {}), name: wrapped}
        try:
            ask = read_response(fields, templated, SERVED)
        except Exception as error:
            told = api_error(error)
            assert not is_supported(name, value), (value, told)
            assert told.status == 400 and (told.param or "").startswith(name), (value, told)
        else:
            assert isinstance(ask, Ask) and is_supported(name, value), value
