"""The bundle's chat template: a conversation as the text the model was trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from rrt_edge.runtime.errors import BadInputError, BundleError

Message = Mapping[str, str]  # its role and its content


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
        environment.globals["namespace"] = _Namespace
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # a stray `break` or deep nesting fails in Python's compiler, not in Jinja
            raise BadInputError(f"the chat template is not valid: {_one_line(error)}") from error
        self._special_tokens = dict(special_tokens)

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template of a bundle: chat_template.jinja, or `chat_template` in tokenizer_config.json.

        Returns:
            None where the folder has no template, or several and none of them named "default".

        Raises:
            BundleError: a file cannot be read, or its template is not valid; names the file.
        """
        path, config_path = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        config = _read_config(config_path)
        if path.is_file():
            source: str | None = _read(path)
        else:
            path, source = config_path, _template_of(config, config_path)
        if source is None:
            return None
        special = {name: _token_text(token) for name, token in config.items() if name.endswith("_token")}
        try:
            return cls(source, {name: text for name, text in special.items() if text is not None})
        except BadInputError as error:
            raise BundleError(f"{path}: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text of a conversation, ready for the assistant's turn.

        Args:
            messages: each with a role and a content.
            add_generation_prompt: end with the beginning of the assistant's turn.
            extra: further variables of the template; they come before special tokens of the same name.

        Raises:
            BadInputError: a message lacks role or content, or the template refuses the conversation.
        """
        _check_messages(messages)
        values = {
            "tools": None,  # templates ask whether these two are none, which an undefined variable is not
            "documents": None,
            **self._special_tokens,
            **extra,
            "messages": [dict(message) for message in messages],  # `dict.update` gets past the sandbox
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._template.render(values)
        except Exception as error:  # whatever the template's own expressions raise
            raise BadInputError(f"the chat template refuses this conversation: {_one_line(error)}") from error


class _GenerationTag(Extension):
    """`{% generation %}` marks what the assistant says; it renders its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Namespace(Namespace):
    """Jinja's `namespace` without underscored names, by which a template could make it pose as another object."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace must not hold {name!r}: it begins with an underscore")
        super().__setitem__(name, value)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter it leaves <, > and & as they are."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, TemplateError) else f"{type(error).__name__}: {text}"


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, Mapping):
            raise BadInputError(f"message {number}: must be a mapping of role and content, not {message!r}")
        for field in ("role", "content"):
            if not isinstance(message.get(field), str):
                raise BadInputError(f"message {number}: {field} is missing or not a text")


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(_read(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise BundleError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(config, dict):
        raise BundleError(f"{path}: not a JSON object")
    return config


def _template_of(config: dict[str, Any], path: Path) -> str | None:
    """`chat_template` of tokenizer_config.json: a text, or a list of named ones of which "default" is taken."""
    source = config.get("chat_template")
    if isinstance(source, list):
        named = [entry for entry in source if isinstance(entry, dict) and entry.get("name") == "default"]
        source = named[-1].get("template", "") if named else None
    if not isinstance(source, str | None):
        raise BundleError(f"{path}: chat_template must be a text, or a list of objects of name and template")
    return source


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
