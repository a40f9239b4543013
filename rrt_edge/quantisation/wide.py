"""The wide form of linears with adapters: shared weight and every depth's LoRA as one matrix.

The A matrices of all depths stand side by side as one matrix; a mask by depth zeroes the columns of the others; the B
matrices follow the shared weight along its input: `y = [W | B_1 .. B_K] [x ; mask * A x]`. Two products, no gather.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.quantisation.blocks import Quantized, Rows, beside, pad_to_block, quantize, stacked
from rrt_edge.quantisation.plan import Format
from rrt_edge.quantisation.scales import balance

Float = NDArray[np.float32]
Matrix = Float | Quantized  # [out, in]
MOST_PACKED = 8  # bits of a code


@dataclass(frozen=True)
class Adapted:
    """One linear: `weight` [out, in]; `a` [K, r, in] and `b` [K, out, r] or None.

    `bias` [out] or None, or [K, out] where each depth has its own. A weight may be in blocks already. `bits` where the
    weight has others than the plan's.
    """

    weight: Matrix
    bias: Float | None = None
    a: Float | None = None
    b: Float | None = None
    bits: int | None = None


def lora_columns(rank: int, loops: int) -> int:
    """Columns of the wide form that one linear's adapters take, zero padding included.

    They are of 32, whatever the block: what several linears add stands side by side, and a row is padded once.
    """
    return pad_to_block(rank * loops)


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

    All have the same bits of their own, or none. Weights of the same input that are in blocks have these of one size.
    """
    own = [linear.weight for linear in linears if isinstance(linear.weight, Quantized)]
    if not own:
        return Format(linears[0].bits or planned.bits, planned.block)
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


def apart(linears: Sequence[Adapted], matrix: Float, adapters: Float | None) -> list[Adapted]:
    """What stands in the matrices that `fused` and `wide_a` make of some linears: the weights, and A and B."""
    inputs = linears[0].weight.shape[1]
    parts, row, first = list[Adapted](), 0, 0
    for linear in linears:
        rows, row = matrix[row : row + len(linear.weight)], row + len(linear.weight)
        a = b = None
        if linear.a is not None:
            assert adapters is not None
            loops, rank, _ = linear.a.shape
            a = adapters[first : first + loops * rank].reshape(loops, rank, inputs)
            own = rows[:, inputs + first : inputs + first + loops * rank]
            b = own.reshape(len(rows), loops, rank).transpose(1, 0, 2)
            first += lora_columns(rank, loops)
        parts.append(Adapted(rows[:, :inputs], linear.bias, a, b))
    return parts


def products(linears: Mapping[str, Adapted], queries_apart: bool) -> list[tuple[str, ...]]:
    """The projections of a layer by the matrix that they stand in, as the graphs multiply by them.

    Args:
        queries_apart: whether keys and values are projected of more rows than queries are.
    """
    attention = [("q",), ("k", "v")] if queries_apart else [("q", "k", "v")]
    inner = tuple(part for part in ("gate", "up") if part in linears)
    fused_inner = [inner] if not has_adapters([linears[part] for part in inner]) else [(part,) for part in inner]
    return [*attention, ("o",), *fused_inner, ("down",)]


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
