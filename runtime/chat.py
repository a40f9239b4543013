"""The bundle's chat template: a conversation as the text the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rrt_edge.runtime.errors import BadInputError, BundleError


class ChatTemplate:
    """A Jinja chat template, run in a sandbox, that renders as transformers' `apply_chat_template` does.

    Args:
        source: the template.
        special_tokens: `bos_token`, `eos_token` and so on, by name.

    Raises:
        BadInputError: the template is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise BadInputError(f"the chat template is not valid: {error}") from error
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template of a bundle: chat_template.jinja, or `chat_template` in tokenizer_config.json.

        Raises:
            BundleError: a file cannot be read.
        """
        config = _read_config(folder / "tokenizer_config.json")
        path = folder / "chat_template.jinja"
        source = path.read_text("utf-8") if path.is_file() else config.get("chat_template")
        if isinstance(source, list):  # several, by name
            source = {entry["name"]: entry["template"] for entry in source}.get("default")
        if source is None:
            return None
        special = {name: _token_text(token) for name, token in config.items() if name.endswith("_token")}
        try:
            return cls(source, {name: text for name, text in special.items() if text is not None})
        except BadInputError as error:
            raise BundleError(f"{folder}: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text of a conversation, ready for the assistant's turn.

        Raises:
            BadInputError: a message lacks role or content, or the template refuses the conversation.
        """
        for index, message in enumerate(messages):
            for field in ("role", "content"):
                if not isinstance(message.get(field), str):
                    raise BadInputError(f"message {index + 1}: {field} is missing or not a text")
        values = {**self._special_tokens, **extra}
        try:
            return self._template.render(messages=messages, add_generation_prompt=add_generation_prompt, **values)
        except (TemplateError, TypeError, ValueError) as error:
            raise BadInputError(f"the chat template refuses this conversation: {error}") from error


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant says; it renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path}: not a JSON object")
    return config


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
