"""Training text: chats or plain text from files or the hub, tokenized with the loss on what the model should say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import IterableDataset

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import NOT_A_RECORD, Record, chat_ids, check_kind, read_records

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
    examples = list(_tokenized(read_records(path), tokenizer, max_length))
    if not examples:
        raise BadInputError(f"{path}: the data file is empty")
    return examples


def stream_examples(source: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> IterableDataset[Example]:
    """Read examples while training: from a file, or from the Hugging Face hub by `hub:NAME` or `hub:NAME:SPLIT`.

    Raises:
        BadInputError: there is no such file or data set.
    """
    if not source.startswith("hub:"):
        check_kind(Path(source))
        return Streamed(lambda: read_records(Path(source)), tokenizer, max_length)
    name, _, split = source.removeprefix("hub:").partition(":")
    from datasets import load_dataset

    try:
        dataset = load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # datasets, the hub and the network raise many kinds
        reason = str(error).strip().splitlines()[0]
        raise BadInputError(f"{source}: cannot be read from the Hugging Face hub ({reason})") from error
    return Streamed(
        lambda: ((f"{source}, record {number}", record) for number, record in enumerate(dataset, 1)),
        tokenizer,
        max_length,
    )


class Streamed(IterableDataset[Example]):
    """Examples tokenized as they are asked for, from the beginning each time."""

    def __init__(
        self, records: Callable[[], Iterator[Record]], tokenizer: PreTrainedTokenizerBase, max_length: int
    ) -> None:
        self.records, self.tokenizer, self.max_length = records, tokenizer, max_length

    def __iter__(self) -> Iterator[Example]:
        return _tokenized(self.records(), self.tokenizer, self.max_length)


class Packed(IterableDataset[Example]):
    """Examples behind each other in rows of at most `max_length` tokens, each with positions of its own."""

    def __init__(self, examples: Iterable[Example], max_length: int) -> None:
        self.examples, self.max_length = examples, max_length

    def __iter__(self) -> Iterator[Example]:
        row: Example = {"input_ids": [], "labels": [], "position_ids": []}
        for example in self.examples:
            length = len(example["input_ids"])
            if row["input_ids"] and len(row["input_ids"]) + length > self.max_length:
                yield row
                row = {"input_ids": [], "labels": [], "position_ids": []}
            row["input_ids"] += example["input_ids"]
            row["labels"] += [IGNORED, *example["labels"][1:]]  # the example before must not predict its first token
            row["position_ids"] += range(length)
        if row["input_ids"]:
            yield row


def _tokenized(records: Iterable[Record], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Example]:
    for where, record in records:
        try:
            chat = record.get("messages")
            example = encode_text(tokenizer, record["text"]) if chat is None else encode_chat(tokenizer, chat)
        except (KeyError, TypeError, AttributeError) as error:
            raise BadInputError(f"{where}: {NOT_A_RECORD} (the file may be cut short)") from error
        yield {key: ids[:max_length] for key, ids in example.items()}


@dataclass(frozen=True)
class PadCollator:
    """Pads examples on the right to the longest of a batch: `input_ids`, `labels`, `attention_mask` [B, S].

    Packed rows get `position_ids` [B, S] and no mask: where positions begin anew, so does what a token attends to.
    """

    pad_token_id: int

    def __call__(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        longest = max(len(example["input_ids"]) for example in examples)

        def padded(key: str, value: int) -> torch.Tensor:
            rows = [example[key] + [value] * (longest - len(example[key])) for example in examples]
            return torch.tensor(rows)

        batch = {"input_ids": padded("input_ids", self.pad_token_id), "labels": padded("labels", IGNORED)}
        if "index" in examples[0]:  # which rows of the training text these are
            batch["index"] = torch.tensor([example["index"][0] for example in examples])
        lengths = torch.tensor([len(example["input_ids"]) for example in examples])
        if "position_ids" in examples[0]:
            beyond = (torch.arange(longest) - lengths[:, None]).clamp(min=0)  # padding is a text of its own
            return {**batch, "position_ids": padded("position_ids", 0) + beyond}
        return {**batch, "attention_mask": (torch.arange(longest) < lengths[:, None]).long()}
