"""The block's matrices rounded so that the layers' output on some texts loses least."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from rrt_edge.conversion.block import EMBEDDING, source_shapes
from rrt_edge.conversion.side_by_side import SideBySide, damped
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors
from rrt_edge.model.families import family_of, head_shape, part_sizes
from rrt_edge.model.lora import adapter_names, join_rows
from rrt_edge.quantisation.blocks import BLOCK, Quantized, dequantize, fitting_block
from rrt_edge.quantisation.compensated import compensated

CORRECTION = 0.7  # share of the error so far that a layer also makes good; all of it would fit the texts too closely


class RoundedToTexts:
    """The matrices of a block in few bits, each made on the inputs that those rounded before it give.

    One after another, source and rounded model run side by side on the texts. A matrix that several depths share is
    rounded for the inputs of all of them; a depth below the first begins with the state that the source has there.
    A layer is rounded when its first matrix is asked for: the layers before it must have been asked for.
    """

    def __init__(
        self,
        weights: RecursiveTensors,
        texts: Sequence[Sequence[int]],
        bits: int,
        dtype: torch.dtype,
        block_size: int = BLOCK,
    ) -> None:
        """
        Args:
            texts: token ids.
            bits: 4 or 8.
            dtype: which keeps the embedding as it is.
            block_size: weights that share a scale, or fewer where a row is not of so many.
        """
        config = weights.config
        self._weights, self._bits, self._block_size = weights, bits, block_size
        self._text, self._loops = config.text_config, config.loops
        self._family = family_of(self._text)
        self._shapes = source_shapes(self._family, self._text)
        self._rounded: dict[str, Quantized] = {}
        self._next = 0  # the layer to round next
        embedding = weights.tensor(EMBEDDING, dtype=dtype)
        self._sides = self._depths(SideBySide(config, texts, embedding), config.layers_per_block)

    def matrix(self, name: str) -> Quantized:
        """A matrix of the block by its name in the recursive model; each is handed over once."""
        if name.startswith(f"model.block.{self._next}."):
            self._round_layer(self._next, self._sides)
            self._next += 1
        return self._rounded.pop(name)

    def _depths(self, first: SideBySide, layers: int) -> list[SideBySide]:
        """The texts at the beginning of each loop."""
        sides, ahead = [first], first.copy()
        for depth in range(self._loops - 1):
            for k in range(layers):
                shared = self._read(k)
                ahead.advance_source(k, ahead.layer(k, self._at_depth(shared, depth)))
            sides.append(ahead.copy())
        return sides

    def _round_layer(self, k: int, sides: Sequence[SideBySide]) -> None:
        """Round the linears of block layer `k` and go on behind it at all depths."""
        shared = self._read(k)
        sources, made = [], []
        for depth, side in enumerate(sides):
            tensors = self._at_depth(shared, depth)
            sources.append(side.layer(k, tensors))
            made.append(side.layer(k, tensors))
        for group in sides[0].groups(k, sources[0]):
            moment, crossed = self._moments(k, sides, sources, made, group[0])
            for path in group:
                aim = shared[f"{path}.weight"]
                missed = [
                    source.get_parameter(f"{path}.weight") @ cross
                    for source, cross in zip(sources, crossed, strict=True)
                    if cross is not None
                ]
                if missed:
                    output = sum(missed, torch.zeros_like(aim)).double()
                    aim = aim + CORRECTION * torch.linalg.solve(moment, output.T).T.float()
                block = fitting_block(aim.shape[1], self._block_size)
                rounded = compensated(aim.numpy(), moment.numpy(), self._bits, block=block)
                self._rounded[f"model.block.{k}.{path}.weight"] = rounded
                weight = torch.from_numpy(dequantize(rounded))
                for depth, layer in enumerate(made):
                    adapted = self._adapted(shared, depth, path, weight)
                    layer.get_submodule(path).weight = nn.Parameter(adapted, requires_grad=False)
        for side, source, layer in zip(sides, sources, made, strict=True):
            side.advance(k, source, layer)

    def _moments(
        self, k: int, sides: Sequence[SideBySide], sources: Sequence[nn.Module], made: Sequence[nn.Module], path: str
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The sum of x x^T over a linear's inputs at all depths, damped, and each depth's `crossed`."""
        sums = [side.moments(k, source, layer, path) for side, source, layer in zip(sides, sources, made, strict=True)]
        return damped(torch.stack([squares for squares, _ in sums]).sum(dim=0)).double(), [cross for _, cross in sums]

    def _read(self, k: int) -> dict[str, Tensor]:
        """The tensors of block layer `k` by their names in it, those of all depths included."""
        start = f"model.block.{k}."
        names = list(self._shapes)
        for linear in self._family.linears:
            for part in linear.parts:
                names += [f"{linear.path}.{name}" for name in adapter_names(part, len(linear.parts) > 1)]
        for path in self._family.norms.values():
            names += [f"{path}.{depth}.{leaf}" for depth in range(self._loops) for leaf in ("weight", "bias")]
        tensors = {name: self._weights.tensor(start + name) for name in names if start + name in self._weights}
        self._weights.close()
        return tensors

    def _at_depth(self, shared: Mapping[str, Tensor], depth: int) -> dict[str, Tensor]:
        """The tensors of a layer of the source: what `_read` gave as one depth has it, adapters added."""
        linears, tensors = {linear.path for linear in self._family.linears}, {}
        for name in self._shapes:
            path, _, leaf = name.rpartition(".")
            tensor = shared[name] if name in shared else shared[f"{path}.{depth}.{leaf}"]
            if path in linears and leaf == "weight":
                tensor = self._adapted(shared, depth, path, tensor)
            elif path in linears and tensor.dim() == 2:  # a bias of each depth's own
                tensor = tensor[depth]
            tensors[name] = tensor
        return tensors

    def _adapted(self, shared: Mapping[str, Tensor], depth: int, path: str, weight: Tensor) -> Tensor:
        """A linear's weight at a depth: the block's and what its adapters add."""
        linear = next(linear for linear in self._family.linears if linear.path == path)
        sizes, added, relaxed = part_sizes(self._text), {}, False
        for part in linear.parts:
            a, b = (f"{path}.{name}" for name in adapter_names(part, len(linear.parts) > 1))
            relaxed = relaxed or a in shared
            added[part] = (
                shared[b][depth] @ shared[a][depth] if a in shared else torch.zeros(sizes[part], weight.shape[1])
            )
        return weight + join_rows(added, head_shape(self._text)[0] if linear.by_head else 1) if relaxed else weight
