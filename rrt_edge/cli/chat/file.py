"""Conversations on disk: what `/save` writes and `/load` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.files import new_file
from rrt_edge.runtime.system.json_text import parse_json

FORMAT = "rrt-edge chat"
VERSION = 1
ROLES = ("system", "user", "assistant")
THOUGHT = "reasoning_content"  # what the assistant thought, where it did


def save_chat(path: Path, messages: Sequence[dict[str, str]]) -> None:
    """Write a conversation; a reader sees the whole file or the one before it.

    Raises:
        BadInputError: the file exists and is no saved chat, or cannot be written.
        RRTEdgeError: another process writes it, or the disk is full.
    """
    if path.exists():
        try:
            load_chat(path)
        except BadInputError as error:
            raise BadInputError(f"{path}: exists and is not a saved chat; choose another name") from error
    content = json.dumps({"format": FORMAT, "version": VERSION, "messages": list(messages)}, indent=1)
    with new_file(path) as partial:
        partial.write_text(content + "\n", "utf-8")


def load_chat(path: Path) -> list[dict[str, str]]:
    """Read a conversation.

    Raises:
        BadInputError: the file cannot be read or is no saved chat; names the field.
    """
    try:
        fields = parse_json(path.read_text("utf-8"))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror}); give a file that /save wrote") from error
    except ValueError as error:  # not UTF-8, or not JSON
        raise BadInputError(f"{path}: not valid JSON; give a file that /save wrote") from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BadInputError(f'{path}: its "format" is not "{FORMAT}"; give a file that /save wrote')
    if fields.get("version") != VERSION:
        raise BadInputError(f"{path}: version {fields.get('version')!r}, this program reads {VERSION}; update rrt-edge")
    messages = fields.get("messages")
    if not isinstance(messages, list):
        raise BadInputError(f'{path}: "messages" must be a list')
    return [_message(path, number, message) for number, message in enumerate(messages, start=1)]


def _message(path: Path, number: int, message: Any) -> dict[str, str]:
    if not isinstance(message, dict) or not all(isinstance(message.get(key), str) for key in ("role", "content")):
        raise BadInputError(f"{path}: message {number} must be an object with a role and a content, both texts")
    if message["role"] not in ROLES:
        raise BadInputError(f"{path}: message {number}: role {message['role']!r} must be one of {', '.join(ROLES)}")
    if not isinstance(message.get(THOUGHT, ""), str):
        raise BadInputError(f"{path}: message {number}: {THOUGHT} must be a text")
    return {key: message[key] for key in ("role", "content", THOUGHT) if key in message}
