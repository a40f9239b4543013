"""Linear layers of the graph: shared weight and every depth's LoRA, in the wide form, at the asked precision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.exporters.builder import FLOAT, FLOAT16, MICROSOFT, Builder
from rrt_edge.exporters.weights import Stored, Weights
from rrt_edge.quantisation.blocks import Quantized, Rows
from rrt_edge.quantisation.plan import Format
from rrt_edge.quantisation.wide import Adapted, Matrix, in_blocks, lora_columns

FAST_INT8 = 4  # accuracy_level of MatMulNBits: activations in int8, 7 times as fast as float at one row


class Linears:
    """Writes the matrices of linears and emits the nodes of one graph that multiply by them, in its float type."""

    def __init__(self, weights: Weights, top: Builder, kind: int = FLOAT, accuracy: int = FAST_INT8) -> None:
        """
        Args:
            top: the outermost graph, where weights stored in another float type are converted, which onnxruntime does
                once, at loading.
            accuracy: what products of 4 or 8 bits compute with (accuracy_level of MatMulNBits).
        """
        self.weights, self.top, self.kind, self.accuracy = weights, top, kind, accuracy
        self._converted: dict[str, str] = {}

    @property
    def dtype(self) -> type[np.generic]:
        """The float type as numpy has it."""
        return np.float16 if self.kind == FLOAT16 else np.float32

    def write(
        self,
        name: str,
        matrix: Callable[[], Matrix | Rows],
        shape: tuple[int, int],
        stored: Format,
        part: str,
        turned: bool = True,
    ) -> None:
        """Write a matrix [out, in] so that `matmul` can use it, unless it is there; asked for only then.

        In floats it stands `turned`, [in, out].
        """
        if stored.packed:
            blocks = stored.blocks(shape)
            packed = Stored((*blocks, stored.block * stored.bits // 8), np.uint8)
            scales = Stored(blocks, np.float32)

            def quantised() -> list[NDArray[Any]]:
                both = in_blocks(matrix(), stored)
                return [both.packed, both.scales]

            self.weights.add_made({f"{name}.packed": packed, f"{name}.scales": scales}, quantised, part)
            return
        kind = np.float16 if stored.bits == 16 else np.float32

        def floats() -> list[NDArray[Any]]:
            whole = matrix()
            assert not isinstance(whole, Quantized)
            return [(whole[:].T if turned else whole[:]).astype(kind)]

        self.weights.add_made({name: Stored(shape[::-1] if turned else shape, kind)}, floats, part)

    def tensor(self, name: str, bits: int = 32) -> str:
        """Return a tensor that was written in 16 or 32 bits, in this graph's float type."""
        if (bits == 16) == (self.kind == FLOAT16):
            return name
        if name not in self._converted:
            self._converted[name] = self.top.op("Cast", name, to=self.kind)
        return self._converted[name]

    def matmul(self, graph: Builder, x: str, name: str, inputs: int, outputs: int, stored: Format) -> str:
        """`x` [..., inputs] times the transpose of the matrix written as `name`."""
        if not stored.packed:
            return graph.op("MatMul", x, self.tensor(name, stored.bits))
        tensors = [f"{name}.packed", self.tensor(f"{name}.scales")]
        sizes = {"K": inputs, "N": outputs, "bits": stored.bits, "block_size": stored.block}
        sizes["accuracy_level"] = self.accuracy
        return graph.op("MatMulNBits", x, *tensors, domain=MICROSOFT, **sizes)


class RowDepths:
    """Picks by each row's depth, emitted once into the loop body."""

    def __init__(self, graph: Builder, row_depth: str, loops: int) -> None:
        self.graph, self.row_depth, self.loops = graph, row_depth, loops  # row_depth: int64 [B, S, 1]
        self.kind = FLOAT  # of masks
        self._masks: dict[tuple[int, ...], str] = {}
        self._index = ""  # int64 [B, S]: the row's depth counted from 0
        self._picked: dict[str, str] = {}

    def index(self) -> str:
        """int64 [B, S]: each row's depth, counted from 0; -1 of a row of depth 0, which is padding."""
        if not self._index:
            index = self.graph.op("Sub", self.row_depth, self.graph.constant(1))
            self._index = self.graph.op("Squeeze", index, self.graph.constant([2]))
        return self._index

    def pick(self, table: str) -> str:
        """Emit the entry of a table [K, ..] at each row's depth: [B, S, ..]; that of padding is not read."""
        if table not in self._picked:
            self._picked[table] = self.graph.op("Gather", table, self.index(), axis=0)
        return self._picked[table]

    def mask(self, linears: Sequence[Adapted]) -> str:
        """1 in the wide columns of the adapters of a row's depth, 0 elsewhere: [B, S, sum of lora_columns]."""
        ranks = tuple(linear.a.shape[1] for linear in linears if linear.a is not None)
        if ranks not in self._masks:
            columns: list[int] = []
            for rank in ranks:
                used = [loop for loop in range(1, self.loops + 1) for _ in range(rank)]
                columns += used + [0] * (lora_columns(rank, self.loops) - len(used))
            self._masks[ranks] = self.equal(columns, self.kind)
        return self._masks[ranks]

    def equal(self, depths: Sequence[int], kind: int) -> str:
        """1 where a row's depth is the one given, 0 elsewhere: [B, S, len(depths)] of a float type."""
        ours = self.graph.op("Equal", self.graph.constant([[[*depths]]]), self.row_depth)
        return self.graph.op("Cast", ours, to=kind)
