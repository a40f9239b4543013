"""A recursive model's parameters made from its source's when they are read, without a recursive checkpoint on disk."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from rrt_edge.conversion.adapters import Energies
from rrt_edge.conversion.block import EMBEDDING, Block, Piece
from rrt_edge.conversion.checkpoint import Checkpoint, Tensors
from rrt_edge.conversion.gguf_file import Blocks
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.modeling import RecursiveForCausalLM

IN_LAYER = re.compile(r"model\.block\.(\d+)\.")


class Converted:
    """The parameters of a recursive model, by their names in it. Those of a block layer are made together."""

    def __init__(self, source: Tensors, config: RecursiveConfig, dtype: torch.dtype) -> None:
        """
        Args:
            config: of the recursive model; its adapters do not fit texts.
            dtype: what the parameters are rounded to.
        """
        with torch.device("meta"):
            model = RecursiveForCausalLM(config)
        self.config = config
        self._source, self._block = source, Block(source, model, dtype)
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        self._made: dict[str, Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def tensor(self, name: str, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        """Make a parameter, or hand over the one that was made with another."""
        layer = IN_LAYER.match(name)
        if layer is not None and name not in self._made:
            self._keep(self._layer(int(layer[1])))
        tensor = self._block.outer(name) if layer is None else self._made.pop(name)
        assert shape is None or tuple(tensor.shape) == tuple(shape)
        return tensor.to(dtype)

    def blocks(self, name: str) -> Blocks | None:
        """A matrix as the source stores it in GGML's blocks; None where it does not, or the matrix is another here."""
        if self.config.loops > 1 or self.config.relaxed or not isinstance(self._source, Checkpoint):
            return None
        family = self._block.family
        if name == EMBEDDING:
            return self._source.blocks(f"{family.prefix}.{family.embedding}.weight")
        return self._source.blocks(name.replace("model.block.", f"{family.prefix}.layers."))

    def close(self) -> None:
        self._made.clear()
        self._source.close()

    def _layer(self, k: int) -> Iterable[Piece]:
        yield from self._block.shared_layer(k)
        yield from self._block.adapters(k, Energies())

    def _keep(self, pieces: Iterable[Piece]) -> None:
        for piece in pieces:
            if piece.loop is None:
                self._made[piece.name] = piece.tensor
                continue
            if piece.name not in self._made:
                self._made[piece.name] = torch.empty(self._shapes[piece.name], dtype=piece.tensor.dtype)
            self._made[piece.name][piece.loop] = piece.tensor
