"""How far the rounding of each unit takes a model's output from what it was: one way there and one back for all.

Where weights are off by D, the divergence (KL) of the output is to second order half of D^T F D. F, the Fisher matrix,
is the mean of s s^T, where s is the derivative of the log probability of tokens drawn from the output itself: so that
half the mean square of s . D is the divergence, for all units from one backward pass. One layer is held at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rrt_edge.conversion.block import EMBEDDING
from rrt_edge.conversion.side_by_side import SideBySide
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors, Streamed, final_norm
from rrt_edge.exporters.depth_layers import DepthLayers
from rrt_edge.exporters.units import unit
from rrt_edge.model.families import family_of
from rrt_edge.quantisation.blocks import Quantized, dequantize, quantize
from rrt_edge.quantisation.plan import Bits
from rrt_edge.quantisation.scales import balance
from rrt_edge.runtime.system.progress import Progress

PIECES, PIECE_TOKENS = 64, 64  # texts are cut into so many at most; each is one sample of the score
TOGETHER = 4  # pieces whose logits are held together
ROWS = 8192  # of the head that are multiplied by at a time
FEW = 4  # bits
LORA = "lora"


@dataclass
class _Error:
    """What rounding adds to a linear: to a row, the weights' error of its unit; and what its adapter's A adds."""

    rounding: Tensor  # [out, in]
    units: list[str]
    of_row: Tensor  # [out]: which of them
    adapters: Tensor | None  # [out, in]


def pieces_of(texts: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    """Pieces of one length, from all over the texts."""
    cut = [ids[at : at + PIECE_TOKENS] for ids in texts for at in range(0, len(ids), PIECE_TOKENS)]
    whole = [piece for piece in cut if len(piece) == PIECE_TOKENS] or [max(cut, key=len)]
    chosen = np.linspace(0, len(whole) - 1, min(PIECES, len(whole))).round().astype(int)
    return [whole[index] for index in chosen]


def divergences(
    weights: RecursiveTensors,
    texts: Sequence[Sequence[int]],
    plan: Bits,
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> dict[str, float]:
    """What 4 bits to the nearest cost, unit by unit: KL to the exact model for a token, the sum over all depths.

    Beside the block's units these are `embedding` and `head`, `embedding` alone where they are one matrix, and `lora`
    where there are adapters.

    Args:
        texts: token ids.
        plan: how large the blocks are.
        dtype: which keeps embedding and head as they are.
    """
    return _Way(weights, pieces_of(texts), plan, dtype, progress).divergences()


class _Way:
    """The way of some pieces of text through the model and back."""

    def __init__(
        self,
        weights: RecursiveTensors,
        pieces: Sequence[Sequence[int]],
        plan: Bits,
        dtype: torch.dtype,
        progress: Progress | None,
    ) -> None:
        self._config, self._pieces, self._plan, self._progress = weights.config, pieces, plan, progress
        self._text, self._family = weights.config.text_config, family_of(weights.config.text_config)
        self._layers, self._per_block = DepthLayers(weights), weights.config.layers_per_block
        self._slots = weights.config.loops * self._per_block
        self._embedding = weights.tensor(EMBEDDING, dtype=dtype)
        self._tied = bool(self._text.tie_word_embeddings)
        self._head = self._embedding if self._tied else weights.tensor("lm_head.weight", dtype=dtype)
        self._norm = final_norm(weights)
        self._side = SideBySide(weights.config, pieces, self._embedding)
        self._scores: dict[str, Tensor] = {}  # by unit: of each piece
        self._draw = torch.Generator().manual_seed(0)

    def divergences(self) -> dict[str, float]:
        """Half the mean square of each unit's scores, for a token."""
        states = self._there()
        embedded = self._back(states)
        self._score_embedding(embedded)
        tokens = sum(map(len, self._pieces))
        return {name: float(scores.square().sum()) / 2 / tokens for name, scores in self._scores.items()}

    def _there(self) -> list[list[Tensor]]:
        """The hidden states of each piece before each layer, and behind the last."""
        states = []
        for slot in range(self._slots):
            states.append([hidden.bfloat16() for hidden in self._side.source])
            depth, k = divmod(slot, self._per_block)
            layer = self._side.layer(slot, self._layers.at_depth(self._layers.read(k), depth))
            self._side.advance_source(slot, layer)
            self._report(slot)
        return [*states, [hidden.bfloat16() for hidden in self._side.source]]

    def _back(self, states: Sequence[Sequence[Tensor]]) -> list[Tensor]:
        """Score the units of the block; returns the derivatives by what the first layer is given."""
        back = [torch.zeros_like(hidden, dtype=torch.float32) for hidden in states[-1]]
        rows = self._head_error()
        for slot in reversed(range(self._slots)):
            depth, k = divmod(slot, self._per_block)
            if k + 1 == self._per_block:
                behind = self._from_head(states[slot + 1], rows)
                back = [own + above for own, above in zip(behind, back, strict=True)]
            shared = self._layers.read(k)
            layer = self._side.layer(slot, self._layers.at_depth(shared, depth))
            errors = {path: self._error(shared, k, depth, path) for path in self._layers.linears}
            for number, hidden in enumerate(states[slot]):
                back[number] = self._through(slot, layer, errors, number, hidden.float(), back[number])
            self._report(2 * self._slots - 1 - slot)
        return back

    def _through(
        self, slot: int, layer: nn.Module, errors: Mapping[str, _Error], number: int, hidden: Tensor, above: Tensor
    ) -> Tensor:
        """The derivative by a layer's input of that by its output; scores what its linears' errors do to it."""
        entered = hidden.requires_grad_()
        with ExitStack() as hooks, torch.enable_grad():
            for path, error in errors.items():

                def watch(
                    _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, path: str = path, error: _Error = error
                ) -> None:
                    x = inputs[0].detach()
                    output.register_hook(lambda grad: self._score(number, error, x, grad))  # type: ignore[no-untyped-call]

                hooks.callback(layer.get_submodule(path).register_forward_hook(watch).remove)
            output = self._side.run(slot, layer, number, entered)
            (below,) = torch.autograd.grad(output, entered, above)
        return below

    def _score(self, number: int, error: _Error, x: Tensor, grad: Tensor) -> None:
        by_row = (F.linear(x, error.rounding) * grad).flatten(0, -2).sum(dim=0)
        scores = torch.zeros(len(error.units)).index_add(0, error.of_row, by_row)
        for name, score in zip(error.units, scores.tolist(), strict=True):
            self._add(name, number, score)
        if error.adapters is not None:
            self._add(LORA, number, float((F.linear(x, error.adapters) * grad).sum()))

    def _add(self, name: str, number: int, score: float) -> None:
        self._scores.setdefault(name, torch.zeros(len(self._pieces), dtype=torch.float64))[number] += score

    def _error(self, shared: Mapping[str, Tensor], k: int, depth: int, path: str) -> _Error:
        """What a linear of block layer `k` is off by at a depth where its weights have few bits."""
        layers, weight = self._layers, shared[f"{path}.weight"]
        parts = layers.linears[path].parts
        rounding, adapters = _rounding(weight, self._plan), {}
        added = {}
        for part in parts:
            a, b = (f"{path}.{name}" for name in layers.names(path, part))
            if a in shared:
                pairs = [balance(*pair) for pair in zip(shared[a].numpy(), shared[b].numpy(), strict=True)]
                wide = torch.from_numpy(np.concatenate([own for _, own in pairs], axis=1))
                rank = pairs[depth][0].shape[0]
                own_a, own_b = (torch.from_numpy(own) for own in pairs[depth])
                added[part] = _rounding(wide, self._plan)[:, depth * rank : (depth + 1) * rank] @ own_a
                adapters[part] = own_b @ _rounding(own_a, self._plan)
        names = list(dict.fromkeys(unit(k, part) for part in parts))
        sizes = {part: len(rows) for part, rows in layers.rows(path, weight).items()}
        numbered = {part: torch.full((sizes[part], 1), float(names.index(unit(k, part)))) for part in parts}
        of_row = layers.joined(path, torch.zeros(len(weight), 1), numbered)[:, 0].long()
        return _Error(
            layers.joined(path, rounding, added) if added else rounding,
            names,
            of_row,
            layers.joined(path, torch.zeros_like(weight), adapters) if adapters else None,
        )

    def _head_error(self) -> Quantized:
        return quantize(Streamed(self._head), FEW, self._plan.format(FEW, self._head.shape[1]).block)

    def _from_head(self, states: Sequence[Tensor], rounded: Quantized) -> list[Tensor]:
        """The derivatives by what the block returns at a depth, of the probability of tokens drawn; scores the head."""
        scale, cap = 1 / self._family.logits_divisor(self._text), self._family.logits_softcap(self._text)
        back: list[Tensor] = []
        for start in range(0, len(states), TOGETHER):
            some = torch.cat([hidden.float() for hidden in states[start : start + TOGETHER]], dim=1).requires_grad_()
            with torch.enable_grad():
                normed = self._norm(some)
            rows = normed.detach()[0] * scale  # [N, H]
            logits = torch.cat([rows @ head.T for _, head in self._chunks()], dim=1)
            capped = logits if cap is None else cap * torch.tanh(logits / cap)
            grad = -torch.softmax(capped, dim=-1)  # of the log probability of what is drawn, by the logits
            drawn = torch.multinomial(-grad, 1, generator=self._draw)
            grad.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=grad.dtype))
            if cap is not None:
                grad *= 1 - (capped / cap).square()
            by_rows, score = torch.zeros_like(rows), torch.zeros(len(rows))
            for chunk, head in self._chunks():
                own = grad[:, chunk]
                by_rows += own @ head
                score += ((rows @ (_some(rounded, chunk) - head).T) * own).sum(dim=1)
            (below,) = torch.autograd.grad(normed, some, (by_rows * scale)[None])
            sizes = [hidden.shape[1] for hidden in states[start : start + TOGETHER]]
            back += torch.split(below, sizes, dim=1)
            for number, own in enumerate(torch.split(score, sizes), start):
                self._add("embedding" if self._tied else "head", number, float(own.sum()))
        return back

    def _chunks(self) -> Iterator[tuple[slice, Tensor]]:
        for start in range(0, len(self._head), ROWS):
            rows = slice(start, min(start + ROWS, len(self._head)))
            yield rows, self._head[rows].float()

    def _score_embedding(self, derivatives: Sequence[Tensor]) -> None:
        """Score what rows of the embedding are off by."""
        scale = self._family.embedding_scale(self._text)
        for number, (ids, derivative) in enumerate(zip(self._pieces, derivatives, strict=True)):
            rows = self._embedding[torch.tensor(ids)].float()
            self._add("embedding", number, float((_rounding(rows, self._plan) * scale * derivative[0]).sum()))

    def _report(self, done: int) -> None:
        if self._progress is not None:
            self._progress(done + 1, 2 * self._slots, "layers measured")


def _rounding(matrix: Tensor, plan: Bits) -> Tensor:
    """What a matrix [out, in] in few bits has more than it should."""
    array = matrix.numpy()
    rounded = quantize(array, FEW, plan.format(FEW, array.shape[1]).block)
    return torch.from_numpy(dequantize(rounded) - array)


def _some(rounded: Quantized, rows: slice) -> Tensor:
    part = Quantized(rounded.packed[rows], rounded.scales[rows], rounded.bits, rounded.columns)
    return torch.from_numpy(dequantize(part))
