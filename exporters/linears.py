"""Linear layers of the graph: shared weight and every depth's LoRA, in the wide form, at the asked precision.

The A matrices of all depths stand side by side as one matrix; a mask by depth zeroes the columns of the others; the B
matrices follow the shared weight along its input: `y = [W | B_1 .. B_K] [x ; mask * A x]`. Two products, no gather.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.exporters.builder import FLOAT, FLOAT16, MICROSOFT, Builder
from rrt_edge.exporters.weights import Stored, Weights
from rrt_edge.quantisation.blocks import (
    BLOCK,
    Quantized,
    Rows,
    beside,
    fitting_block,
    pad_to_block,
    quantize,
    stacked,
)
from rrt_edge.quantisation.packing import is_packed
from rrt_edge.quantisation.scales import balance

Float = NDArray[np.float32]
Matrix = Float | Quantized  # [out, in]
MOST_PACKED = 8  # bits of a code
FAST_INT8 = 4  # accuracy_level of MatMulNBits: activations in int8, 7 times as fast as float at one row


@dataclass(frozen=True)
class Format:
    """How a matrix is stored: in 4 or 8 bits, `block` weights with a scale each, or in floats of 16 or 32 bits."""

    bits: int
    block: int = BLOCK

    @property
    def packed(self) -> bool:
        return is_packed(self.bits)

    def blocks(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The scales of a matrix [out, in]: [out, blocks]."""
        return shape[0], pad_to_block(shape[1], self.block) // self.block

    def bytes(self, shape: tuple[int, int]) -> int:
        """What a matrix [out, in] takes, scales in float32 included."""
        if not self.packed:
            return shape[0] * shape[1] * self.bits // 8
        outputs, blocks = self.blocks(shape)
        return outputs * blocks * (self.block * self.bits // 8 + 4)


@dataclass(frozen=True)
class Bits:
    """Bits of each part's weights: 4, 8, 16 or 32. A LoRA's B stands in the block's matrices and has their bits.

    `block_size` weights share a scale, or fewer where the rows of a matrix are not of so many (`fitting_block`).
    """

    block: int
    lora: int
    embedding: int
    head: int
    block_size: int = BLOCK

    def format(self, bits: int, columns: int) -> Format:
        """How a matrix of so many bits is stored whose rows, without adapters, are `columns` long."""
        return Format(bits, fitting_block(columns, self.block_size))


@dataclass(frozen=True)
class Adapted:
    """One linear: `weight` [out, in]; `a` [K, r, in] and `b` [K, out, r] or None.

    `bias` [out] or None, or [K, out] where each depth has its own. A weight may be in blocks already.
    """

    weight: Matrix
    bias: Float | None = None
    a: Float | None = None
    b: Float | None = None


def lora_columns(rank: int, loops: int) -> int:
    """Columns of the wide form that one linear's adapters take, zero padding included.

    They are of 32, whatever the block: what several linears add stands side by side, and a row is padded once.
    """
    return pad_to_block(rank * loops)


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


def wide_a(linears: Sequence[Adapted]) -> Float:
    """The A matrices of several linears of the same input, [sum of lora_columns, in]; some may have none."""
    inputs = linears[0].weight.shape[1]
    parts = []
    for linear in linears:
        if linear.a is None or linear.b is None:
            continue
        balanced = [balance(a, b)[0] for a, b in zip(linear.a, linear.b, strict=True)]
        part = np.zeros((lora_columns(linear.a.shape[1], len(balanced)), inputs), dtype=np.float32)
        stacked = np.concatenate(balanced)
        part[: len(stacked)] = stacked
        parts.append(part)
    return np.concatenate(parts)


def wide_b(linear: Adapted) -> Float:
    """The B matrices of a linear's depths side by side, [out, lora_columns]."""
    assert linear.a is not None and linear.b is not None
    balanced = [balance(a, b)[1] for a, b in zip(linear.a, linear.b, strict=True)]
    wide = np.zeros((len(linear.weight), lora_columns(linear.a.shape[1], len(balanced))), dtype=np.float32)
    stacked = np.concatenate(balanced, axis=1)
    wide[:, : stacked.shape[1]] = stacked
    return wide


def in_blocks(matrix: Matrix | Rows, stored: Format) -> Quantized:
    """A matrix in blocks: as it is where it has them, or quantised."""
    return matrix if isinstance(matrix, Quantized) else quantize(matrix, stored.bits, stored.block)


def fused_format(linears: Sequence[Adapted], planned: Format) -> Format:
    """How what `fused` makes is stored: as planned, or where weights are in blocks already in those, at the most bits.

    Weights of the same input that are in blocks have these of one size.
    """
    own = [linear.weight for linear in linears if isinstance(linear.weight, Quantized)]
    if not own:
        return planned
    return Format(max(each.bits for each in own) if len(own) == len(linears) else MOST_PACKED, own[0].block)


def fused(linears: Sequence[Adapted]) -> Matrix:
    """Weights of several linears of the same input on top of each other, adapters block-diagonal behind them."""
    own = [linear.weight for linear in linears if isinstance(linear.weight, Quantized)]
    if own:
        rest = Format(MOST_PACKED, own[0].block)
        weights = stacked([in_blocks(linear.weight, rest) for linear in linears])
        if not has_adapters(linears):
            return weights
        return beside(weights, quantize(_diagonal(linears), weights.bits, weights.block))
    weight = np.concatenate([linear.weight for linear in linears])  # type: ignore[arg-type, unused-ignore]
    return np.concatenate([weight, _diagonal(linears)], axis=1) if has_adapters(linears) else weight


def _diagonal(linears: Sequence[Adapted]) -> Float:
    """The wide B matrices of several linears, each in rows and columns of its own."""
    nothing = np.zeros((0, 0), dtype=np.float32)
    wides = [nothing if linear.a is None else wide_b(linear) for linear in linears]
    rows = sum(len(linear.weight) for linear in linears)
    diagonal = np.zeros((rows, sum(wide.shape[1] for wide in wides)), dtype=np.float32)
    row = column = 0
    for linear, wide in zip(linears, wides, strict=True):
        diagonal[row : row + wide.shape[0], column : column + wide.shape[1]] = wide
        row, column = row + len(linear.weight), column + wide.shape[1]
    return diagonal


def fused_shape(linears: Sequence[Adapted], loops: int) -> tuple[int, int]:
    """Return the shape of what `fused` makes: outputs, inputs."""
    adapters = [lora_columns(linear.a.shape[1], loops) for linear in linears if linear.a is not None]
    return sum(len(linear.weight) for linear in linears), linears[0].weight.shape[1] + sum(adapters)


def has_adapters(linears: Sequence[Adapted]) -> bool:
    return any(linear.a is not None for linear in linears)


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
