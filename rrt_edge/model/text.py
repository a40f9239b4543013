"""Texts and chats as token ids, made with a checkpoint's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import Chat, Record, chat_ids, read_records, text_or_chat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross entropy passes over
Example = dict[str, list[int]]


def encode_chat(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, Any]],
    tools: Sequence[Any] | None = None,
    where: str = "a chat",
) -> Example:
    """Tokenize a chat; labels are the tokens of the assistant's turns, `IGNORED` elsewhere.

    Each turn is tokenized as it is when chatting, so that training sees the token boundaries that generation makes.

    Raises:
        BadInputError: the tokenizer has no chat template, or its template refuses the chat; names `where` it stands.
    """

    shown = tools and list(tools)

    def render(turns: Sequence[dict[str, Any]], add_generation_prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(turns), tools=shown, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )

    ids, said = chat_ids(where, messages, render, lambda text: tokenizer.encode(text, add_special_tokens=False))
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
    examples = list(predictive(tokenized(read_records(path), tokenizer, max_length)))
    if not examples:
        raise BadInputError(f"{path}: the data file is empty, or no record of it has a token to predict")
    return examples


def predictive(examples: Iterable[Example]) -> Iterator[Example]:
    """Pass over examples without a token to predict: texts of one token, and chats cut before the assistant's turn."""
    return (example for example in examples if any(label != IGNORED for label in example["labels"][1:]))


def tokenized(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Example]:
    """Yield the examples of records, cut to `max_length` tokens each.

    Raises:
        BadInputError: a record is not of the form; names where it stands.
    """
    for where, record in records:
        content = text_or_chat(where, record)
        if isinstance(content, Chat):
            example = encode_chat(tokenizer, content.messages, content.tools, where)
        else:
            example = encode_text(tokenizer, content)
        yield {key: ids[:max_length] for key, ids in example.items()}
