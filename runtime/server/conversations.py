"""The conversation of a request to /v1/chat/completions, as the model's chat template takes it."""

from __future__ import annotations

from typing import Any

from rrt_edge.runtime.bundle.messages import MessageError, checked, cut, text_of
from rrt_edge.runtime.errors import about
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.fields import Fields
from rrt_edge.runtime.server.tools import objects
from rrt_edge.runtime.system.json_text import parse_json

ROLES = {"developer": "system", "function": "tool"}  # of OpenAI's API, as templates know them


def read_prompt(fields: Fields, model: Model, tools: list[dict[str, Any]] | None, most: int | None = None) -> list[int]:
    """The token ids of a request's conversation, with the tools and further variables that its template may use.

    Args:
        tools: what the template is to show.
        most: tokens to which a longer one is shortened, where it is to be.

    Raises:
        ApiError: a field is missing or wrong.
        BadInputError: the template refuses the conversation.
    """
    try:
        messages = _messages(fields.get("messages"))
        loaded = insides(model)
        if most is None:
            loaded.check_length("".join(map(text_of, messages)))
        if model.template is not None and model.template.takes_objects(tools):
            messages = [_with_objects(message) for message in messages]
        with about("messages"):
            ids = loaded.encode_chat(messages, most, tools=tools, chat_template_kwargs=_variables(fields))
            return cut(ids, most)
    except MessageError as error:
        raise ApiError(400, f"{error.param}: {error.complaint}", error.param) from error


def _messages(messages: Any) -> list[dict[str, Any]]:
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages: must be a list of messages, one at least", "messages")
    return checked([_in_todays_words(message) for message in messages])


def _in_todays_words(message: Any) -> Any:
    """A message as templates know them: OpenAI's API has older names for some, and refusals beside texts."""
    if not isinstance(message, dict):
        return message
    role = message.get("role")
    message = {**message, "role": ROLES.get(role, role) if isinstance(role, str) else role}
    content, call = message.get("content"), message.pop("function_call", None)
    if isinstance(content, list):
        message["content"] = [_without_refusal(part) for part in content]
    elif content is None and isinstance(message.get("refusal"), str):
        message["content"] = message["refusal"]
    if isinstance(call, dict) and message.get("tool_calls") is None:
        message["tool_calls"] = [{"id": "call_0", "type": "function", "function": call}]
    return message


def _without_refusal(part: Any) -> Any:
    if isinstance(part, dict) and part.get("type") == "refusal":
        return {"type": "text", "text": part.get("refusal")}
    return part


def _variables(fields: Fields) -> dict[str, Any]:
    variables = fields.get("chat_template_kwargs")
    if variables is not None and not isinstance(variables, dict):
        raise ApiError(400, "chat_template_kwargs: must be an object", "chat_template_kwargs")
    documents = objects(fields, "documents")
    return {**({} if documents is None else {"documents": documents}), **(variables or {})}


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """A message in which the arguments of calls, texts of JSON in this API, are the objects that they stand for."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_with_object(call) for call in calls]} if isinstance(calls, list) else message


def _with_object(call: Any) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(arguments := function.get("arguments"), str):
        return call
    try:
        value = parse_json(arguments)
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": value}} if isinstance(value, dict) else call
