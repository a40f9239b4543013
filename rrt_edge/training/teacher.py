"""The teacher of a distillation: a model beside the student, or what it said, kept on disk once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.text import IGNORED, Example
from rrt_edge.model.threads import torch_threads
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.files import new_folder
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.progress import Progress
from rrt_edge.training.data import PadCollator
from rrt_edge.training.losses import divergence, hidden_loss
from rrt_edge.training.options import Divergence

META = "teacher.json"
WINDOW = 16  # batches within which examples of like length run together


def predicting(labels: Tensor) -> Tensor:
    """The positions that predict a label: bool [B, S]."""
    return F.pad(labels[:, 1:] != IGNORED, (0, 1))


def text_of(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs that a model reads of a batch."""
    return {name: batch[name] for name in ("input_ids", "attention_mask", "position_ids") if name in batch}


class Answer(Protocol):
    """What a teacher says of a batch, at the positions asked for."""

    def divergence(self, student: Tensor, kind: Divergence, t: float) -> Tensor:
        """Divergence of a student's logits [N, V] from the teacher's, at temperature t."""
        ...


@dataclass(frozen=True)
class Logits:
    """All logits [N, V]; and, where asked for, the hidden states [B, S, H] behind the embedding and each layer."""

    logits: Tensor
    states: tuple[Tensor, ...] | None = None

    def divergence(self, student: Tensor, kind: Divergence, t: float) -> Tensor:
        return divergence(student, self.logits, kind, t)

    def distance(self, student: tuple[Tensor, ...], config: RecursiveConfig, kept: Tensor) -> Tensor:
        """How far a student's states after each layer run are from those of its source, at the positions `kept`.

        Where they stand for the same (`RecursiveConfig.same_states`), less the source's last, which may be normed.
        """
        assert self.states is not None
        pairs = [pair for pair in config.same_states() if pair[0] < len(student) and pair[1] < len(self.states) - 1]
        return hidden_loss([student[run] for run, _ in pairs], [self.states[layers] for _, layers in pairs], kept)


@dataclass(frozen=True)
class OnlineTeacher:
    """Runs the teacher for every batch."""

    model: PreTrainedModel

    @torch.no_grad()
    def answer(self, batch: dict[str, Tensor], predicts: Tensor, states: bool = False) -> Logits:
        """What the teacher says at the positions `predicts`, bool [B, S], and its hidden states where asked for."""
        said = self.model(**text_of(batch), output_hidden_states=states)
        return Logits(said.logits[predicts], said.hidden_states if states else None)


@dataclass(frozen=True)
class MostLogits:
    """The k largest logits [N, k], by their tokens, and how much the others weigh together [N], at a temperature."""

    tokens: Tensor
    logits: Tensor
    others: Tensor
    temperature: float

    def divergence(self, student: Tensor, kind: Divergence, t: float) -> Tensor:
        """Forward KL, as `Logits` has it."""
        assert kind == "forward-kl" and t == self.temperature
        p = torch.log_softmax(torch.cat([self.logits / t, self.others[:, None]], dim=-1), dim=-1)  # [N, k + 1]
        q = torch.log_softmax(student.float() / t, dim=-1).gather(-1, self.tokens)
        rest = torch.log1p(-q.exp().sum(dim=-1, keepdim=True).clamp(max=1 - 1e-6))
        return F.kl_div(torch.cat([q, rest], dim=-1), p, log_target=True, reduction="batchmean") * t**2


class CachedTeacher:
    """The k largest logits at each position that predicts a label, and how much the others weigh together.

    The student is compared with these k tokens and with all others as one.
    """

    def __init__(self, folder: Path) -> None:
        self.temperature = _read_meta(folder)["temperature"]
        self._starts: NDArray[np.int64] = np.load(folder / "starts.npy")
        self._tokens: NDArray[np.int32] = np.load(folder / "tokens.npy", mmap_mode="r")
        self._logits: NDArray[np.float16] = np.load(folder / "logits.npy", mmap_mode="r")
        self._others: NDArray[np.float32] = np.load(folder / "others.npy")

    def answer(self, batch: dict[str, Tensor], predicts: Tensor, states: bool = False) -> MostLogits:
        """What was kept of positions that predict a label; `predicts` may leave out some. Of hidden states nothing."""
        assert not states
        rows = np.concatenate([np.arange(*self._starts[index : index + 2]) for index in batch["index"].tolist()])
        rows = rows[predicts[predicting(batch["labels"])].cpu().numpy()]
        kept = (self._tokens[rows].astype(np.int64), self._logits[rows].astype(np.float32), self._others[rows])
        tokens, logits, others = (torch.from_numpy(array).to(predicts.device) for array in kept)
        return MostLogits(tokens, logits, others, self.temperature)


def _read_meta(folder: Path) -> dict[str, Any]:
    """
    Raises:
        BadInputError: the file that says what the cache is made of is damaged.
    """
    path = folder / META
    try:
        meta = parse_json(path.read_text("utf-8"))
        return {name: meta[name] for name in ("of", "top_k", "temperature")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInputError(f"{path}: damaged ({error}); remove the folder, or choose another") from error


class Said(NamedTuple):
    """What a teacher says at the positions of an example that predict a label: [N, k], [N, k] and [N]."""

    tokens: NDArray[np.int64]
    logits: NDArray[np.float32]
    others: NDArray[np.float32]


@torch.no_grad()
def _ask(
    model: PreTrainedModel,
    examples: Sequence[Example],
    collator: PadCollator,
    top_k: int,
    temperature: float,
    indices: Sequence[int],
) -> dict[int, Said]:
    """Run the teacher on some examples."""
    batch = collator([examples[index] for index in indices])
    predicts = predicting(batch["labels"])
    logits = model(**text_of(batch)).logits[predicts].float()  # [N, V]
    largest = logits.topk(top_k, dim=-1)
    left = logits.div_(temperature).scatter_(-1, largest.indices, -torch.inf)
    others = torch.logsumexp(left, dim=-1).clamp(min=-1e4)
    counts = predicts.sum(dim=1).tolist()
    columns = (tensor.split(counts) for tensor in (largest.indices, largest.values, others))
    return {
        index: Said(tokens.numpy(), values.numpy(), rest.numpy())
        for index, tokens, values, rest in zip(indices, *columns, strict=True)
    }


def cache_teacher(
    model: PreTrainedModel,
    examples: Sequence[Example],
    collator: PadCollator,
    folder: Path,
    *,
    top_k: int,
    temperature: float,
    batch: int,
    progress: Progress | None = None,
) -> None:
    """Write what a `CachedTeacher` reads, where `folder` does not hold it already.

    Raises:
        BadInputError: the folder holds the cache of another teacher, data or option.
        RRTEdgeError: the disk is full.
    """
    made_of = {"of": fingerprint(model, examples), "top_k": top_k, "temperature": temperature}
    if (folder / META).is_file():
        meta = _read_meta(folder)
        wrong = next((name for name, value in made_of.items() if meta.get(name) != value), None)
        if wrong is None:
            return
        raise BadInputError(f"{folder / META}: {wrong}: made of another teacher, data or option; choose another folder")
    counts = [sum(label != IGNORED for label in example["labels"][1:]) for example in examples]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    with new_folder(folder, "teacher cache", lambda path: (path / META).is_file()) as made:
        shape = (int(starts[-1]), top_k)
        others = np.zeros(shape[0], np.float32)
        count = torch.get_num_threads()
        rows = max(1, batch // count)
        with (
            torch_threads(count) as threads,
            _Rows(made / "tokens.npy", np.int32, shape) as tokens,
            _Rows(made / "logits.npy", np.float16, shape) as logits,
        ):
            for first in range(0, len(examples), batch * WINDOW):
                window = range(first, min(first + batch * WINDOW, len(examples)))
                alike = sorted(window, key=lambda index: len(examples[index]["input_ids"]))
                parts = [alike[at : at + rows] for at in range(0, len(alike), rows)]
                said: dict[int, Said] = {}
                for of_part in threads.map(partial(_ask, model, examples, collator, top_k, temperature), parts):
                    said.update(of_part)
                for index in window:
                    tokens.add(said[index].tokens)
                    logits.add(said[index].logits)
                    others[starts[index] : starts[index + 1]] = said[index].others
                if progress is not None:
                    progress(window.stop, len(examples), "examples taught")
        np.save(made / "others.npy", others)
        np.save(made / "starts.npy", starts)
        (made / META).write_text(json.dumps(made_of), "utf-8")


class _Rows:
    """An .npy file of known shape, written row by row: a mapped one would end the process where the disk is full."""

    def __init__(self, path: Path, kind: type[np.generic], shape: tuple[int, ...]) -> None:
        self.kind, self.file = kind, path.open("wb")
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(kind)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.file, header)

    def __enter__(self) -> _Rows:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def add(self, rows: NDArray[Any]) -> None:
        self.file.write(np.ascontiguousarray(rows, self.kind).data)


def fingerprint(model: PreTrainedModel, examples: Sequence[Example]) -> str:
    """A hash of the teacher's last weights and of the training text."""
    digest = hashlib.sha256()
    parameters: list[Any] = list(model.parameters())
    digest.update(parameters[-1].detach().float().cpu().numpy().tobytes())
    for example in examples:
        digest.update(np.array(example["input_ids"], np.int64).tobytes())
        digest.update(np.array(example["labels"], np.int64).tobytes())
    return digest.hexdigest()
