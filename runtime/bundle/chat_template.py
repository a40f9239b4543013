"""The bundle's chat template: a conversation as the text the model was trained on."""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rrt_edge.runtime.errors import BadInputError, BundleError
from rrt_edge.runtime.system.children import Children, Limits
from rrt_edge.runtime.system.json_text import parse_json

Message = Mapping[str, str]  # its role and its content
FILE = "chat_template.jinja"
LONGEST_SOURCE = 1 << 18  # characters of a template
LIMITS = Limits(seconds=2, memory_bytes=512 << 20)  # for a conversation to be rendered
RENDERERS = Children("rrt_edge.runtime.bundle.rendering", None, LIMITS, most=2)  # of all templates
atexit.register(RENDERERS.close)


class ChatTemplate:
    """A Jinja chat template that renders as transformers' `apply_chat_template` does.

    It runs in a sandbox, in a child process whose time and memory are bounded: a template is a program of whoever made
    the bundle.

    Args:
        source: the template.
        special_tokens: `bos_token`, `eos_token` and so on, by name.

    Raises:
        BadInputError: the template is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        if len(source) > LONGEST_SOURCE:
            raise BadInputError(f"the chat template is not valid: it has more than {LONGEST_SOURCE:,} characters")
        RENDERERS.ask({"source": source}, "the chat template is not valid: compiling it")
        self._source = source
        self._special_tokens = dict(special_tokens)

    @staticmethod
    def start(folder: Path) -> None:
        """Start what renders the template of a bundle that is about to be loaded: it takes a moment to begin."""
        if (folder / FILE).is_file():
            RENDERERS.start()

    @classmethod
    def from_folder(cls, folder: Path) -> ChatTemplate | None:
        """The template of a bundle: chat_template.jinja, or `chat_template` in tokenizer_config.json.

        Returns:
            None where the folder has no template, or several and none of them named "default".

        Raises:
            BundleError: a file cannot be read, or its template is not valid; names the file.
        """
        path, config_path = folder / FILE, folder / "tokenizer_config.json"
        config = _read_config(config_path)
        if path.is_file():
            source: str | None = _read(path)
        else:
            path, source = config_path, _template_of(config, config_path)
        if source is None:
            return None
        try:
            return cls(source, special_tokens(folder))
        except BadInputError as error:
            raise BundleError(f"{path}: {error}") from error

    def render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, **extra: Any) -> str:
        """The text of a conversation, ready for the assistant's turn.

        Args:
            messages: each with a role and a content.
            add_generation_prompt: end with the beginning of the assistant's turn.
            extra: further variables of the template, as JSON has them; they come before special tokens of the same
                name.

        Raises:
            BadInputError: a message lacks role or content, or the template refuses the conversation, or takes too much
                time or memory.
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
        question = {"source": self._source, "values": values}
        text: str = RENDERERS.ask(question, "the chat template refuses this conversation: rendering it")
        return text


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


def special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and so on, as tokenizer_config.json names them.

    Raises:
        BundleError: the file cannot be read.
    """
    config = _read_config(folder / "tokenizer_config.json")
    tokens = {name: _token_text(token) for name, token in config.items() if name.endswith("_token")}
    return {name: text for name, text in tokens.items() if text is not None}


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        config = parse_json(_read(path))
    except ValueError as error:
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
