"""Text to train, score or calibrate on: chats or plain text in files, and which of their tokens a model should say."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.json_text import parse_json

KINDS = (".jsonl", ".txt", ".parquet")
NOT_A_RECORD = 'not a record of the form {"messages": [{"role": ..., "content": ...}]} or {"text": "..."}'
Record = tuple[str, Any]  # where it stands, and what it holds


@dataclass(frozen=True)
class Chat:
    """A conversation of a data file: its messages, and the tools that its template is to name, where it has any."""

    messages: Sequence[dict[str, Any]]
    tools: Sequence[Any] | None = None


def text_or_chat(where: str, record: Any) -> str | Chat:
    """What a record holds: a text, or a chat with at least one turn of the assistant.

    Args:
        where: the record stands, for messages.
        record: an object with `messages` (and `tools`, perhaps) or with `text`, as JSON has it.

    Raises:
        BadInputError: it is neither; names the place and the field.
    """
    if not isinstance(record, dict):
        raise BadInputError(f"{where}: {NOT_A_RECORD}, but {_kind(record)}")
    messages, text, tools = record.get("messages"), record.get("text"), record.get("tools")
    if messages is None and text is None:
        fields = ", ".join(map(str, list(record)[:8])) or "none"
        empty = [name for name in ("messages", "text") if name in record]
        reason = f'"{empty[0]}" is null' if empty else f"its fields are: {fields}"
        raise BadInputError(f"{where}: {NOT_A_RECORD} ({reason})")
    if messages is None:
        return _text(f'{where}: "text"', text)
    if not isinstance(messages, list):
        raise BadInputError(f'{where}: "messages" must be a list of objects, but it is {_kind(messages)}')
    for index, message in enumerate(messages):
        _check_message(f'{where}: "messages", item {index + 1}', message)
    if all(message["role"] != "assistant" for message in messages):
        raise BadInputError(f'{where}: "messages" has no turn of the assistant, so that there is nothing to predict')
    if not isinstance(tools, list | None):
        raise BadInputError(f'{where}: "tools" must be a list of objects, but it is {_kind(tools)}')
    return Chat(messages, tools)


def _check_message(where: str, message: Any) -> None:
    if not isinstance(message, dict):
        raise BadInputError(f'{where} must be an object with "role" and "content", but it is {_kind(message)}')
    if not isinstance(message.get("role"), str):
        raise BadInputError(f'{where}: "role" must be a text such as "user", but it is {_kind(message.get("role"))}')
    content = message.get("content")
    if isinstance(content, list):
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("type"), str):
                raise BadInputError(f'{where}: each part of "content" must be an object with a "type"')
            if "text" in part:
                _text(f'{where}: "text" of a part of "content"', part["text"])
    elif content is not None or not message.get("tool_calls"):
        _text(f'{where}: "content"', content)


def _text(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise BadInputError(f"{where} must be a text, but it is {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    """What a value of JSON is, in words."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    names = ((dict, "an object"), (list, "a list"), (str, "a text"))
    return next((name for kind, name in names if isinstance(value, kind)), f"the number {value}"[:40])


def chat_ids(
    where: str,
    messages: Sequence[dict[str, Any]],
    render: Callable[[Sequence[Any], bool], str],
    encode: Callable[[str], list[int]],
) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and which of them the assistant says.

    Each turn is rendered and tokenized as it is when chatting: the prompt up to the assistant's turn first, then the
    answer. `render(messages, add_generation_prompt)`; `encode` adds no special tokens.

    Raises:
        BadInputError: the template refuses the chat; names where the chat stands.
    """
    ids: list[int] = []
    said: list[bool] = []
    rendered = ""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            for end, own in ((index, False), (index + 1, True)):
                try:
                    text = render(messages[:end], not own)
                except Exception as error:  # a template raises what it likes
                    reason = " ".join(str(error).split()) or type(error).__name__
                    raise BadInputError(f"{where}: the chat template refuses this chat ({reason[:300]})") from error
                turn = encode(text.removeprefix(rendered))
                ids += turn
                said += [own] * len(turn)
                rendered = text
    return ids, said


def check_kind(path: Path) -> None:
    """Raise `BadInputError` where there is no such file, or it is none that can be read."""
    if not path.is_file():
        raise BadInputError(f"{path}: no such data file; give a {', '.join(KINDS)} file with --data")
    if path.suffix not in KINDS:
        raise BadInputError(f"{path}: data of another kind; give a {', '.join(KINDS)} file with --data")


def read_records(path: Path) -> Iterator[Record]:
    """Yield where each record of a file stands, and the record.

    `.jsonl`: an object a line; empty lines are passed over. `.parquet`: a row. `.txt`: a paragraph of plain text, with
    empty lines between them. Text is UTF-8, with or without a byte order mark.

    Raises:
        BadInputError: the file is missing, of another kind or damaged; names the line.
    """
    check_kind(path)
    if path.suffix == ".parquet":
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile

        try:
            batches = ParquetFile(path).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
        except (ArrowException, OSError) as error:
            raise BadInputError(f"{path}: not a parquet file, or a damaged one ({error})") from error
        return
    if path.suffix == ".txt":
        yield from _paragraphs(path, read_lines(path))
        return
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, parse_json(line)
        except json.JSONDecodeError as error:
            raise BadInputError(f"{where}: {NOT_A_RECORD} (the file may be cut short)") from error
        except ValueError as error:
            raise BadInputError(f"{where}: {NOT_A_RECORD} ({error})") from error


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file in UTF-8, with their ends as "\\n" and without a byte order mark.

    Raises:
        BadInputError: it is not UTF-8; names the line.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1:
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                    raise BadInputError(f"{path}: text in UTF-16; save the file as UTF-8")
                line = line.removeprefix(codecs.BOM_UTF8)
            try:
                yield line.decode().replace("\r\n", "\n")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                reason = f"byte 0x{byte:02x} is not UTF-8; save the file as UTF-8"
                raise BadInputError(f"{path}, line {number}: {reason}") from error


def _paragraphs(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    paragraph: list[str] = []
    for number, line in enumerate(chain(lines, [""]), 1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield f"{path}, line {number - len(paragraph)}", {"text": "".join(paragraph).strip()}
            paragraph = []
