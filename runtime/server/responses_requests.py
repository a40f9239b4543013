"""What clients send to /v1/responses, as what the engine takes; every complaint names their field."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError, chained, named
from rrt_edge.runtime.server.door import Ask
from rrt_edge.runtime.server.fields import BOTH, PASSED_OVER, Fields
from rrt_edge.runtime.server.protocol import read_chat
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.server.tools import objects
from rrt_edge.runtime.system.options import shown

SAME = BOTH - {"n", "max_tokens", "logprobs", "response_format", "stream_options"}  # fields that chats have as well
READ = SAME | {
    "input", "instructions", "max_output_tokens", "text", "tools", "tool_choice", "parallel_tool_calls",
    "top_logprobs", "include", "chat_template_kwargs", "stream_options", "truncation",
}  # fmt: skip
STATELESS = "nothing is stored here: send the whole conversation as input"
NOTHING: dict[str, tuple[tuple[Any, ...], str]] = {  # fields that are not supported, but for these values
    "background": ((False,), "the answer is only sent to who waits for it"),
    "conversation": ((), STATELESS),
    "previous_response_id": ((), STATELESS),
    "prompt": ((), "send its text as instructions or input"),
    "context_management": (([],), "leave out of input what is not needed any more"),
}
PASSED = PASSED_OVER | {"reasoning", "max_tool_calls", "access_programs", "background_options", "image"}
TEXT_PARTS = ("input_text", "output_text", "text")
LOGPROBS = "message.output_text.logprobs"  # in `include`
ECHOED: tuple[tuple[str, Any], ...] = (  # fields that the answer repeats, and what they are where they are absent
    ("instructions", None), ("max_output_tokens", None), ("metadata", {}), ("parallel_tool_calls", True),
    ("temperature", None), ("top_p", None), ("tool_choice", "auto"), ("tools", []), ("user", None),
    ("text", {"format": {"type": "text"}}), ("truncation", "disabled"),
)  # fmt: skip


def read_response(body: Any, model: Model, options: ServerOptions) -> Ask:
    """The body of /v1/responses.

    Raises:
        ApiError: a field is missing or wrong.
        BadInputError: an option is out of range.
    """
    fields = Fields.of(body, frozenset(READ), NOTHING, PASSED)
    names = {"max_completion_tokens": "max_output_tokens", "response_format": "text.format", "messages": "input"}
    with named(names):
        asked = {name: fields.get(name) for name in SAME | {"parallel_tool_calls", "chat_template_kwargs"}}
        asked |= {
            "messages": _messages(fields),
            "max_completion_tokens": fields.get("max_output_tokens"),
            "response_format": _format(fields.get("text")),
            "tools": _tools(fields),
            "tool_choice": _choice(fields.get("tool_choice")),
            "context_full": _context_full(fields),
        }
        if LOGPROBS in _included(fields) or fields.get("top_logprobs"):
            asked |= {"logprobs": True, "top_logprobs": fields.get("top_logprobs")}
        ask = read_chat(asked, model, options)
    echo = {name: otherwise if fields.get(name) is None else fields.get(name) for name, otherwise in ECHOED}
    return replace(ask, ignored=fields.ignored, names=chained(ask.names, names), echo=echo)


def _context_full(fields: Fields) -> Any:
    """What is done where the conversation has no room: `truncation`, unless our own field says it."""
    truncation = fields.get("truncation")
    if truncation not in (None, "auto", "disabled"):
        raise ApiError(400, f"truncation {shown(truncation)}: must be auto or disabled", "truncation")
    if "context_full" in fields:
        return fields.get("context_full")
    return "truncate-left" if truncation == "auto" else None


def _included(fields: Fields) -> list[Any]:
    include = fields.get("include")
    if not isinstance(include, list | None):
        raise ApiError(400, f"include {shown(include)}: must be a list", "include")
    return include or []


def _format(text: Any) -> Any:
    """`text.format` as `response_format`."""
    form = text.get("format") if isinstance(text, dict) else text
    if not isinstance(text, dict | None) or not isinstance(form, dict | None):
        raise ApiError(400, "text: must be an object with a format", "text")
    if form is None or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}


def _tools(fields: Fields) -> list[dict[str, Any]] | None:
    tools = objects(fields, "tools")
    for number, tool in enumerate(tools or ()):
        if tool.get("type") != "function":
            where = f"tools[{number}].type"
            raise ApiError(400, f"{where} {shown(tool.get('type'))}: only functions can be called here", where)
        if not isinstance(tool.get("name"), str) or not tool["name"]:
            where = f"tools[{number}].name"
            raise ApiError(400, f"{where}: must be a text that is not empty", where)
    return tools and [
        {
            "type": "function",
            "function": {name: value for name, value in tool.items() if name not in ("type", "strict")},
        }
        for tool in tools
    ]


def _choice(choice: Any) -> Any:
    """`tool_choice` as chats have it, in which a function's name stands in an object of its own."""
    if not isinstance(choice, dict):
        return choice
    if choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    if choice.get("type") == "allowed_tools":
        tools = choice.get("tools")
        tools = [_choice(tool) for tool in tools] if isinstance(tools, list) else tools
        return {"type": "allowed_tools", "allowed_tools": {"mode": choice.get("mode"), "tools": tools}}
    return choice


def _messages(fields: Fields) -> list[Any]:
    """The conversation as chats have it."""
    given, instructions = fields.get("input"), fields.text("instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise ApiError(400, "input: must be a text, or a list of items, one at least", "input")
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    for number, item in enumerate(given):
        _add(messages, item, f"input[{number}]")
    return messages


def _add(messages: list[dict[str, Any]], item: Any, where: str) -> None:
    """Add an item to the conversation; thoughts and calls go to the assistant's message that they belong to."""
    if not isinstance(item, dict):
        raise ApiError(400, f"{where}: must be an object", where)
    kind = item.get("type") or ("message" if "role" in item else None)
    if kind == "message":
        message = {"role": item.get("role"), "content": _content(item.get("content"), f"{where}.content")}
        open_one = _open(messages) if message["role"] == "assistant" else None
        if open_one is not None and open_one["content"] is None and "tool_calls" not in open_one:  # a thought
            open_one["content"] = message["content"]
        else:
            messages.append(message)
    elif kind == "reasoning":
        thought = "".join(_texts(item.get("content"), "reasoning_text", f"{where}.content"))
        messages.append({"role": "assistant", "content": None, "reasoning_content": thought})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        if not all(isinstance(value, str) for value in function.values()):
            raise ApiError(400, f"{where}: a function_call needs name and arguments, which are texts", where)
        assistant = _open(messages)
        if assistant is None:
            assistant = {"role": "assistant", "content": None}
            messages.append(assistant)
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        assistant.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        content = _content(item.get("output"), f"{where}.output")
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": content})
    else:
        remedy = (
            STATELESS if kind == "item_reference" else "messages, reasoning, function calls and their outputs are read"
        )
        raise ApiError(400, f"{where}.type {shown(kind)}: not supported by this server; {remedy}", f"{where}.type")


def _open(messages: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The assistant's message that the conversation ends with, if it does."""
    return messages[-1] if messages and messages[-1].get("role") == "assistant" else None


def _content(content: Any, where: str) -> Any:
    if not isinstance(content, list):
        return content
    return [{"type": "text", "text": text} for text in _texts(content, "", where)]


def _texts(parts: Any, kind: str, where: str) -> list[str]:
    """The texts of parts, of one kind or of all kinds that are text."""
    texts = []
    for number, part in enumerate(parts if isinstance(parts, list) else []):
        found = part.get("type") if isinstance(part, Mapping) else None
        if found == "refusal" and isinstance(part.get("refusal"), str):
            texts.append(part["refusal"])
        elif found not in ((kind,) if kind else TEXT_PARTS) or not isinstance(part.get("text"), str):
            message = (
                f"{where}[{number}] of the type {shown(found)}: must be a part with a text; only text is supported"
            )
            raise ApiError(400, message, f"{where}[{number}]")
        else:
            texts.append(part["text"])
    return texts
