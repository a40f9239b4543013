"""Adapters that take up what rounding the block lost, at each depth."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from rrt_edge.conversion.adapters import output_factors, refitted
from rrt_edge.conversion.block import EMBEDDING
from rrt_edge.conversion.side_by_side import SideBySide
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors, side_by_side
from rrt_edge.exporters.depth_layers import DepthLayers
from rrt_edge.exporters.units import unit
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.quantisation.blocks import Quantized, dequantize, quantize
from rrt_edge.quantisation.plan import Bits, Format
from rrt_edge.quantisation.scales import balance
from rrt_edge.runtime.system.progress import Progress


class Repaired:
    """A recursive model whose block is rounded, with adapters that are fitted to what its layers lost on some texts.

    The layers are gone through depth by depth, each on the inputs that those before it give: source and rounded model
    run side by side, so that an adapter also makes good what the depths before it lost. A stands in the bundle rounded,
    so B is fitted to the A that will be read.
    """

    def __init__(
        self,
        weights: RecursiveTensors,
        rounded: Callable[[str], Quantized],
        texts: Sequence[Sequence[int]],
        bits: Bits,
        dtype: torch.dtype,
        rank: int,
        progress: Progress | None,
    ) -> None:
        """
        Args:
            rounded: the block's matrices, layer by layer.
            texts: token ids.
            dtype: which keeps the embedding as it is.
            rank: of adapters for a model that has none; 0: those that it has are fitted anew.
        """
        self.config: RecursiveConfig = copy.deepcopy(weights.config)
        if rank:
            self.config.rank = rank
        self._weights, self._bits, self._layers = weights, bits, DepthLayers(weights)
        blocks = range(self.config.layers_per_block)
        self._rounded = {
            name: rounded(name)
            for k in blocks
            for name in (f"{_prefix(k)}{path}.weight" for path in self._layers.linears)
        }
        self._adapters: dict[str, Tensor] = {}
        side = side_by_side(weights, texts, weights.tensor(EMBEDDING, dtype=dtype))
        slots = self.config.text_config.num_hidden_layers
        for slot in range(slots):
            self._repair(side, slot)
            if progress is not None:
                progress(slot + 1, slots, "layers repaired")

    def __contains__(self, name: str) -> bool:
        return name in self._adapters or name in self._weights

    def tensor(self, name: str, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """A parameter; an adapter as it was fitted."""
        return self._adapters[name].to(dtype) if name in self._adapters else self._weights.tensor(name, shape, dtype)

    def close(self) -> None:
        self._weights.close()

    def matrix(self, name: str) -> Quantized:
        """A matrix of the block by its name in the recursive model; each is handed over once."""
        return self._rounded.pop(name)

    def _repair(self, side: SideBySide, slot: int) -> None:
        depth, k = divmod(slot, self.config.layers_per_block)
        layer = self._layers.read(k)
        tensors = self._layers.at_depth(layer, depth)
        source = side.layer(slot, tensors)
        own = {f"{path}.weight": self._own(k, path) for path in self._layers.linears}
        made = side.layer(slot, {**tensors, **own})
        for group in side.groups(slot, source):
            sums = side.input_sums(slot, source, made, group[0])
            for path in group:
                weight = source.get_parameter(f"{path}.weight")
                added: dict[str, Tensor] = {}
                rounded = self._layers.rows(path, own[f"{path}.weight"])
                own_bits = self._bits.of_unit(unit(k, self._layers.linears[path].parts[0]))
                for part, aim in self._layers.rows(path, weight).items():
                    rank = self.config.rank_of(part, aim.shape[1], aim.shape[0])
                    if not rank:
                        continue
                    residual = aim - rounded[part]
                    a, b, _, _ = output_factors(aim, residual, rank, sums)
                    a, b = (torch.from_numpy(factor) for factor in balance(a.numpy(), b.numpy()))
                    in_a, in_b = (self._bits.format(bits, aim.shape[1]) for bits in (self._bits.lora, own_bits))
                    read = _read(a, in_a)
                    b = refitted(aim, residual, read, sums)
                    self._keep(k, depth, path, part, a, b)
                    added[part] = _read(b, in_b) @ read
                joined = self._layers.joined(path, own[f"{path}.weight"], added)
                made.get_submodule(path).weight = nn.Parameter(joined, requires_grad=False)
        side.advance(slot, source, made)

    def _own(self, k: int, path: str) -> Tensor:
        return torch.from_numpy(dequantize(self._rounded[f"{_prefix(k)}{path}.weight"]))

    def _keep(self, k: int, depth: int, path: str, part: str, a: Tensor, b: Tensor) -> None:
        for name, factor in zip(self._layers.names(path, part), (a, b), strict=True):
            stacked = self._adapters.setdefault(
                f"{_prefix(k)}{path}.{name}", torch.empty(self.config.loops, *factor.shape)
            )
            stacked[depth] = factor


def _prefix(k: int) -> str:
    return f"model.block.{k}."


def _read(matrix: Tensor, stored: Format) -> Tensor:
    """A matrix as the bundle will have it; adapters beside 4 or 8 bits have these too."""
    return torch.from_numpy(dequantize(quantize(matrix.numpy(), stored.bits, stored.block)))
