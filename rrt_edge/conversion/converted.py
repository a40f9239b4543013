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

    def block_type(self, name: str) -> str | None:
        """GGML's type of a matrix as the source stores it in blocks; None where it does not, or it is another here."""
        source = self._unshared
        return None if source is None else source.block_type(self._own(name))

    def blocks(self, name: str) -> Blocks | None:
        """The matrix in these blocks."""
        source = self._unshared
        return None if source is None else source.blocks(self._own(name))

    def close(self) -> None:
        self._made.clear()
        self._source.close()

    @property
    def _unshared(self) -> Checkpoint | None:
        """The source on disk, where its matrices are the model's own."""
        same = self.config.loops == 1 and not self.config.relaxed
        return self._source if same and isinstance(self._source, Checkpoint) else None

    def _own(self, name: str) -> str:
        """What the source calls a matrix."""
        family = self._block.family
        if name == EMBEDDING:
            return f"{family.prefix}.{family.embedding}.weight"
        return name.replace("model.block.", f"{family.prefix}.layers.")

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
