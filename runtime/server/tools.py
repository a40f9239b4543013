"""The functions that a chat's reply may call, or must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rrt_edge.runtime.bundle.messages import check_objects
from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.decoding.reply import Token
from rrt_edge.runtime.decoding.tool_calls import CLOSE, OPEN, CallReader, Style, call_grammar
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.loaded import NO_TOOLS, insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.fields import Fields
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import shown

CHOICES = ("none", "auto", "required")
FORCED_STYLE: Style = "llama3"  # of calls by models whose own style is not known


@dataclass(frozen=True)
class Tools:
    """Functions that may be called.

    Attributes:
        shown: what the chat template gets.
        functions: those that may be called; each has a name.
        must: one of them must be.
        several: more than one call is allowed.
        style: how calls are written; None: not known, so that they are words like others.
        added: the names of the tokenizer's added tokens.
        skipped: the markers of calls, by token, that are special tokens, which decoding skips.
    """

    shown: list[dict[str, Any]]
    functions: tuple[Mapping[str, Any], ...]
    must: bool
    several: bool
    style: Style | None
    added: frozenset[str]
    skipped: Mapping[int, str]

    def words(self, token: Token) -> str:
        """What a token adds to the text of a reply, the markers of calls included."""
        return self.skipped.get(token.id, "") + token.text

    def reader(self) -> CallReader | None:
        """What tells calls from words in one reply; None where it cannot be told."""
        names = {function["name"] for function in self.functions}
        return None if self.style is None else CallReader(self.style, names, None if self.several else 1)

    def grammar(self, answer: Grammar | None) -> Grammar | None:
        """What the reply must be; `answer`: where it calls nothing.

        Raises:
            ApiError: there must be a call and an answer of another form.
        """
        if self.must and answer is not None:
            message = "tool_choice: a reply that must call a function has no response_format, regex or grammar"
            raise ApiError(400, message, "tool_choice")
        if self.style is None or (answer is None and not self.must) or (answer and answer.kind != "json-schema"):
            return answer
        schema = None if answer is None else parse_json(answer.text)
        return call_grammar(self.functions, self.style, self.several, schema, self.added)


def objects(fields: Fields, name: str) -> list[dict[str, Any]] | None:
    """A field that is a list of objects, or None."""
    value: list[dict[str, Any]] | None = fields.get(name)
    try:
        check_objects(name, value)
    except BadInputError as error:
        raise ApiError(400, str(error), name) from error
    return value


def read_tools(fields: Fields, model: Model) -> Tools | None:
    """The tools of a request; None where there are none, or none of them may be called.

    Raises:
        ApiError: a field is wrong, or the model's chat template has no place for tools.
    """
    tools, choice = objects(fields, "tools"), fields.get("tool_choice")
    functions = {function["name"]: function for function in map(_function, range(len(tools or ())), tools or ())}
    several = fields.get("parallel_tool_calls") is None or fields.flag("parallel_tool_calls")
    names, must = _chosen(choice)
    for name in names or ():
        if name not in functions:
            raise ApiError(400, f"tool_choice: no function {shown(name)} is among tools", "tool_choice")
    if not tools and must:
        raise ApiError(400, "tool_choice: needs tools", "tool_choice")
    if not tools or choice == "none":
        return None
    if model.template is not None and not model.template.takes_tools:
        raise ApiError(400, NO_TOOLS, "tools")
    callable_ones = tuple(functions[name] for name in (functions if names is None else names))
    style = insides(model).call_style or (FORCED_STYLE if must else None)
    tokens = model.tokenizer.get_added_tokens_decoder()
    added = frozenset(token.content for token in tokens.values())
    skipped = {id: token.content for id, token in tokens.items() if token.special and token.content in (OPEN, CLOSE)}
    return Tools(tools, callable_ones, must, several, style, added, skipped)


def _function(number: int, tool: Mapping[str, Any]) -> Mapping[str, Any]:
    where = f"tools[{number}]"
    if tool.get("type", "function") != "function":
        raise ApiError(400, f"{where}.type {shown(tool['type'])}: must be function", f"{where}.type")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise ApiError(400, f"{where}.function: must be an object", f"{where}.function")
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise ApiError(400, f"{where}.function.name: must be a text that is not empty", f"{where}.function.name")
    if not isinstance(function.get("parameters"), dict | None):
        raise ApiError(400, f"{where}.function.parameters: must be a JSON schema", f"{where}.function.parameters")
    return function


def _chosen(choice: Any) -> tuple[list[Any] | None, bool]:
    """The functions that tool_choice names, None where it names none; and whether one must be called."""
    if choice is None or choice in CHOICES:
        return None, choice == "required"
    kind = choice.get("type") if isinstance(choice, dict) else None
    part = choice.get(kind) if kind in ("function", "allowed_tools") else None
    if isinstance(part, dict) and kind == "function":
        return [part.get("name")], True
    if isinstance(part, dict) and part.get("mode") in ("auto", "required") and isinstance(part.get("tools"), list):
        named = [tool.get("function") if isinstance(tool, dict) else None for tool in part["tools"]]
        return [tool.get("name") if isinstance(tool, dict) else None for tool in named], part["mode"] == "required"
    message = f"tool_choice {shown(choice)}: must be auto, none, required, a function or allowed_tools"
    raise ApiError(400, message, "tool_choice")
