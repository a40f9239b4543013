"""Text to train, score or calibrate on: chats or plain text in files, and which of their tokens a model should say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.json_text import parse_json

KINDS = (".jsonl", ".txt", ".parquet")
NOT_A_RECORD = 'not a record of the form {"messages": [{"role": ..., "content": ...}]} or {"text": "..."}'
Record = tuple[str, Any]  # where it stands, and what it holds


def chat_ids(
    messages: Sequence[Mapping[str, str]],
    render: Callable[[Sequence[Any], bool], str],
    encode: Callable[[str], list[int]],
) -> tuple[list[int], list[bool]]:
    """Token ids of a chat, and which of them the assistant says.

    Each turn is rendered and tokenized as it is when chatting: the prompt up to the assistant's turn first, then the
    answer. `render(messages, add_generation_prompt)`; `encode` adds no special tokens.
    """
    chat: list[int] = []
    said: list[bool] = []
    rendered = ""
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            for text, own in ((render(messages[:index], True), False), (render(messages[: index + 1], False), True)):
                ids = encode(text.removeprefix(rendered))
                chat += ids
                said += [own] * len(ids)
                rendered = text
    return chat, said


def check_kind(path: Path) -> None:
    """Raise `BadInputError` where there is no such file, or it is none that can be read."""
    if not path.is_file():
        raise BadInputError(f"{path}: no such data file; give a {', '.join(KINDS)} file with --data")
    if path.suffix not in KINDS:
        raise BadInputError(f"{path}: data of another kind; give a {', '.join(KINDS)} file with --data")


def read_records(path: Path) -> Iterator[Record]:
    """Yield where each record of a file stands, and the record.

    `.jsonl`: an object a line. `.parquet`: a row. `.txt`: a paragraph of plain text, with empty lines between them.

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
    with path.open(encoding="utf-8") as file:
        if path.suffix == ".txt":
            yield from _paragraphs(path, file)
            return
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                yield where, parse_json(line)
            except ValueError as error:
                raise BadInputError(f"{where}: {NOT_A_RECORD} (the file may be cut short)") from error


def _paragraphs(path: Path, lines: Iterable[str]) -> Iterator[Record]:
    paragraph: list[str] = []
    for number, line in enumerate(chain(lines, [""]), 1):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            yield f"{path}, line {number - len(paragraph)}", {"text": "".join(paragraph).strip()}
            paragraph = []
