"""Data files as a bundle's tokenizer and chat template have them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import Chat, chat_ids, read_records, text_or_chat


@dataclass(frozen=True)
class Example:
    """Token ids of a text, and which of them are scored: those after the first that the model should say."""

    ids: Sequence[int]
    scored: Sequence[bool]


def tokenized_records(path: Path, tokenizer: Tokenizer, template: ChatTemplate | None) -> Iterator[Example]:
    """Yield the texts and chats of a data file with the tokens to score: all of a text, the assistant's of a chat.

    Raises:
        BadInputError: the file cannot be read, a record of it is neither a text nor a chat, or it is a chat and
            there is no chat template or one that refuses it.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    for where, record in read_records(path):
        content = text_or_chat(where, record)
        if not isinstance(content, Chat):
            ids = tokenizer.encode(content).ids
            said = [True] * len(ids)
        elif template is None:
            raise BadInputError(f"{where}: a chat, and the bundle has no chat template")
        else:
            extra: dict[str, Any] = {"tools": content.tools} if content.tools else {}
            ids, said = chat_ids(where, content.messages, partial(template.render, **extra), encode)
        yield Example(ids, said)
