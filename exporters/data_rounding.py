"""The block's matrices rounded so that the layers' output on some texts loses least."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rrt_edge.conversion.adapters import CORRECTION
from rrt_edge.conversion.block import EMBEDDING
from rrt_edge.conversion.side_by_side import SideBySide, damped
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors, side_by_side
from rrt_edge.exporters.depth_layers import DepthLayers
from rrt_edge.exporters.units import unit
from rrt_edge.quantisation.blocks import Quantized, dequantize
from rrt_edge.quantisation.compensated import Inputs, compensated
from rrt_edge.quantisation.plan import Bits


class RoundedToTexts:
    """The matrices of a block in few bits, each made on the inputs that those rounded before it give.

    One after another, source and rounded model run side by side on the texts. A matrix that several depths share is
    rounded for the inputs of all of them; a depth below the first begins with the state that the source has there.
    A layer is rounded when its first matrix is asked for: the layers before it must have been asked for.
    """

    def __init__(
        self, weights: RecursiveTensors, texts: Sequence[Sequence[int]], plan: Bits, dtype: torch.dtype
    ) -> None:
        """
        Args:
            texts: token ids.
            plan: the bits of each matrix, 4 or 8, and how many weights share a scale.
            dtype: which keeps the embedding as it is.
        """
        config = weights.config
        self._layers, self._loops, self._plan = DepthLayers(weights), config.loops, plan
        self._per_block = config.layers_per_block
        self._rounded: dict[str, Quantized] = {}
        self._next = 0  # the layer to round next
        embedding = weights.tensor(EMBEDDING, dtype=dtype)
        self._sides = self._depths(side_by_side(weights, texts, embedding))

    def matrix(self, name: str) -> Quantized:
        """A matrix of the block by its name in the recursive model; each is handed over once."""
        if name.startswith(f"model.block.{self._next}."):
            self._round_layer(self._next, self._sides)
            self._next += 1
        return self._rounded.pop(name)

    def _depths(self, first: SideBySide) -> list[SideBySide]:
        """The texts at the beginning of each loop."""
        sides, ahead = [first], first.copy()
        for slot in range((self._loops - 1) * self._per_block):
            depth, k = divmod(slot, self._per_block)
            ahead.advance_source(slot, ahead.layer(slot, self._layers.at_depth(self._layers.read(k), depth)))
            if k + 1 == self._per_block:
                sides.append(ahead.copy())
        return sides

    def _round_layer(self, k: int, sides: Sequence[SideBySide]) -> None:
        """Round the linears of block layer `k` and go on behind it at all depths."""
        shared = self._layers.read(k)
        runs = []
        for depth, side in enumerate(sides):
            tensors, slot = self._layers.at_depth(shared, depth), depth * self._per_block + k
            runs.append(Run(side, slot, side.layer(slot, tensors), side.layer(slot, tensors)))
        for group in sides[0].groups(k, runs[0].source):
            moment, crossed = _moments(runs, group[0])
            root = torch.linalg.cholesky(moment)
            inputs = Inputs.of(moment.numpy(), self._plan.format(self._plan.block, len(moment)).block)
            for path in group:
                aim = shared[f"{path}.weight"]
                missed = [
                    run.source.get_parameter(f"{path}.weight") @ cross
                    for run, cross in zip(runs, crossed, strict=True)
                    if cross is not None
                ]
                if missed:
                    output = sum(missed, torch.zeros_like(aim)).double()
                    aim = aim + CORRECTION * torch.cholesky_solve(output.T, root).T.float()
                bits = self._plan.of_unit(unit(k, self._layers.linears[path].parts[0]))
                rounded = compensated(aim.numpy(), inputs, bits)
                self._rounded[f"model.block.{k}.{path}.weight"] = rounded
                weight = torch.from_numpy(dequantize(rounded))
                for depth, run in enumerate(runs):
                    adapted = self._layers.adapted(shared, depth, path, weight)
                    run.made.get_submodule(path).weight = nn.Parameter(adapted, requires_grad=False)
        for run in runs:
            run.side.advance(run.slot, run.source, run.made)


@dataclass(frozen=True)
class Run:
    """A layer at one depth, as the source has it and as it is made; `slot` counts layers over all depths."""

    side: SideBySide
    slot: int
    source: nn.Module
    made: nn.Module


def _moments(runs: Sequence[Run], path: str) -> tuple[Tensor, list[Tensor | None]]:
    """The sum of x x^T over a linear's inputs at all depths, damped, and `SideBySide.moments`' second by depth."""
    sums = [run.side.moments(run.slot, run.source, run.made, path) for run in runs]
    return damped(torch.stack([squares for squares, _ in sums]).sum(dim=0)).double(), [cross for _, cross in sums]
