"""Texts and chats as token ids, made with a checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import NOT_A_RECORD, Record, chat_ids, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross entropy passes over
Example = dict[str, list[int]]


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> Example:
    """Tokenize a chat; labels are the tokens of the assistant's turns, `IGNORED` elsewhere.

    Each turn is tokenized as it is when chatting, so that training sees the token boundaries that generation makes.
    """

    def render(some: Sequence[dict[str, str]], add_generation_prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(some, tokenize=False, add_generation_prompt=add_generation_prompt))

    ids, said = chat_ids(messages, render, lambda text: tokenizer.encode(text, add_special_tokens=False))
    return {"input_ids": ids, "labels": [token if own else IGNORED for token, own in zip(ids, said, strict=True)]}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Example:
    """Tokenize plain text; every token is a label."""
    ids = tokenizer.encode(text)
    return {"input_ids": ids, "labels": list(ids)}


def read_examples(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """Read training text, cut to `max_length` tokens an example.

    `.jsonl`: objects of `{"messages": [...]}` or `{"text": "..."}`, one a line. `.parquet`: rows with such columns.
    `.txt`: paragraphs of plain text, with empty lines between them.

    Raises:
        BadInputError: the file is missing, empty or of another kind, or a record is not of the form; names the line.
    """
    examples = list(tokenized(read_records(path), tokenizer, max_length))
    if not examples:
        raise BadInputError(f"{path}: the data file is empty")
    return examples


def tokenized(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Example]:
    """Yield the examples of records, cut to `max_length` tokens each.

    Raises:
        BadInputError: a record is not of the form; names where it stands.
    """
    for where, record in records:
        try:
            chat = record.get("messages")
            example = encode_text(tokenizer, record["text"]) if chat is None else encode_chat(tokenizer, chat)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{where}: {NOT_A_RECORD} (the file may be cut short)") from error
        yield {key: ids[:max_length] for key, ids in example.items()}
