"""Training text: chats or plain text from files or the hub, tokenized with the loss on what the model should say."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.utils.data import IterableDataset

from rrt_edge.model.text import IGNORED, Example, predictive, tokenized
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import Record, check_kind, read_records

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


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
        return predictive(tokenized(self.records(), self.tokenizer, self.max_length))


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
