"""The files of a bundle that its chat template is read from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.system.json_text import parse_json

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
DEFAULT, TOOL_USE = "default", "tool_use"  # names of templates where there are several


class Sources(NamedTuple):
    """A chat template, the one for conversations with tools where that is another, and the file of both."""

    path: Path
    default: str
    tool_use: str | None


def read_sources(folder: Path) -> Sources | None:
    """The chat templates of a bundle: chat_template.jinja, or `chat_template` in tokenizer_config.json.

    Returns:
        None where the folder has no template, or several and none of them named "default".

    Raises:
        BundleError: a file cannot be read, or is not of the form; names the file.
    """
    path, config_path = folder / FILE, folder / CONFIG
    config = _read_config(config_path)
    if path.is_file():
        return Sources(path, _read(path), None)
    named = _named(config, config_path)
    return Sources(config_path, named[DEFAULT], named.get(TOOL_USE)) if DEFAULT in named else None


def special_tokens(folder: Path) -> dict[str, str]:
    """`bos_token`, `eos_token` and so on, as tokenizer_config.json names them.

    Raises:
        BundleError: the file cannot be read.
    """
    config = _read_config(folder / CONFIG)
    further = config.get("extra_special_tokens")
    named = {name: token for name, token in config.items() if name.endswith("_token")}
    if isinstance(further, dict):  # those that are the model's own
        named.update(further)
    tokens = {name: _token_text(token) for name, token in named.items()}
    return {name: text for name, text in tokens.items() if text is not None}


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read ({error})") from error


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


def _named(config: dict[str, Any], path: Path) -> dict[str, str]:
    """`chat_template` of tokenizer_config.json: a text, or templates by name, in an object or a list."""
    source = config.get("chat_template")
    if isinstance(source, list):
        entries = [entry for entry in source if isinstance(entry, dict)]
        pairs: Iterable[tuple[Any, Any]] = ((entry.get("name"), entry.get("template", "")) for entry in entries)
    else:
        pairs = source.items() if isinstance(source, dict) else [(DEFAULT, source)]
    named = {name: template for name, template in pairs if name in (DEFAULT, TOOL_USE)}
    if not all(isinstance(template, str | None) for template in named.values()):
        raise BundleError(f"{path}: chat_template must be a text, or a list of objects of name and template")
    return {name: template for name, template in named.items() if template is not None}


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None
