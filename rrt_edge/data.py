"""Training text: chats or plain text in a JSON-lines file, tokenized with the loss on what the model should say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label that cross entropy passes over
Example = dict[str, list[int]]


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[dict[str, str]]) -> Example:
    """Tokenize a chat; labels are the tokens of the assistant's turns, `IGNORED` elsewhere.

    Each turn is rendered and tokenized as it is when chatting: the prompt up to the assistant's turn first, then the
    answer, so that training sees the token boundaries that generation makes.
    """
    input_ids: list[int] = []
    labels: list[int] = []
    rendered = ""

    def add(text: str, trained: bool) -> None:
        nonlocal rendered
        ids = tokenizer.encode(text.removeprefix(rendered), add_special_tokens=False)
        input_ids.extend(ids)
        labels.extend(ids if trained else [IGNORED] * len(ids))
        rendered = text

    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            before = messages[:index]
            add(tokenizer.apply_chat_template(before, tokenize=False, add_generation_prompt=True), trained=False)
            add(tokenizer.apply_chat_template(messages[: index + 1], tokenize=False), trained=True)
    return {"input_ids": input_ids, "labels": labels}


def encode_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Example:
    """Tokenize plain text; every token is a label."""
    ids = tokenizer.encode(text)
    return {"input_ids": ids, "labels": list(ids)}


def read_examples(path: Path, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Example]:
    """Read a JSON-lines file of `{"messages": [...]}` or `{"text": "..."}` objects, cut to `max_length` tokens.

    Raises:
        BadInputError: the file is missing or empty, or a line is not such an object; the message names the line.
    """
    if not path.is_file():
        raise BadInputError(f"{path}: no such data file; give a .jsonl file with --data")
    examples = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            example = _encode_line(line, f"{path}, line {number}", tokenizer)
            examples.append({key: ids[:max_length] for key, ids in example.items()})
    if not examples:
        raise BadInputError(f"{path}: the data file is empty")
    return examples


def _encode_line(line: str, where: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    try:
        record: Any = json.loads(line)
        if "messages" in record:
            return encode_chat(tokenizer, record["messages"])
        return encode_text(tokenizer, record["text"])
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        wanted = '{"messages": [{"role": ..., "content": ...}]} or {"text": "..."}'
        raise BadInputError(f"{where}: not a record of the form {wanted} (the file may be cut short)") from error


@dataclass(frozen=True)
class PadCollator:
    """Pads examples on the right to the longest of a batch: `input_ids`, `labels`, `attention_mask` [B, S]."""

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)

        def padded(key: str, value: int) -> torch.Tensor:
            rows = [example[key] + [value] * (longest - len(example[key])) for example in examples]
            return torch.tensor(rows)

        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "labels": padded("labels", IGNORED),
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }
