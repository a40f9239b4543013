"""Block-wise weight quantisation in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rrt_edge.quantisation.packing import pack, unpack
from rrt_edge.quantisation.scales import best_scales, centred_codes

Float = NDArray[np.float32]
BLOCK = 32  # weights that share a scale, where nothing else is asked for
SIZES = (32, 64, 128)  # of blocks, that may be asked for
LEAST_BLOCKS = 4  # of a row, where blocks are larger than 32
PIECE = 1 << 16  # weights searched at a time: what stays in a core's cache


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] in blocks along `in`.

    `packed` uint8 [out, blocks, block * bits / 8], low nibble first; `scales` float32 [out, blocks]. A weight is
    (q - 2^(bits - 1)) * scale. Zero points would lower the error by 4 % at 4 bits, but cost 15 % of the speed of a
    product of one row (measured, AVX2) and 2 % of the bytes.
    """

    packed: NDArray[np.uint8]
    scales: Float
    bits: int
    columns: int

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's, [out, in]."""
        return len(self.scales), self.columns

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return int(self.packed.shape[-1]) * 8 // self.bits

    def __len__(self) -> int:
        return len(self.scales)


def fitting_block(columns: int, block: int) -> int:
    """The block of matrices whose rows are `columns` long, where `block` is asked for: that or a smaller one.

    It divides the row, at least `LEAST_BLOCKS` times. Then nothing is padded, what stands beside the row has blocks of
    its own, and whatever that pads to a whole block costs less than the scales that larger blocks save.
    """
    fits = [size for size in SIZES if size <= block and columns % size == 0 and columns >= LEAST_BLOCKS * size]
    return max(fits, default=BLOCK)


def pad_to_block(columns: int, block: int = BLOCK) -> int:
    """The next multiple of a block."""
    return -(-columns // block) * block


class Rows(Protocol):
    """A matrix [out, in] of which some rows at a time are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> Float: ...


def quantize(weight: Rows, bits: int, block: int = BLOCK) -> Quantized:
    """Quantise a matrix [out, in] to 4 or 8 bits: of several ranges for each block, the one with the least error."""
    out, columns = weight.shape
    blocks = pad_to_block(columns, block) // block
    packed = np.empty((out, blocks, block * bits // 8), np.uint8)
    scales = np.empty((out, blocks), np.float32)

    def piece(rows: slice, weights: Float) -> None:
        scales[rows] = best_scales(weights, bits)
        codes = centred_codes(weights, scales[rows], bits)
        codes += np.float32(2 ** (bits - 1))
        packed[rows] = pack(codes.astype(np.uint8), bits)

    _in_pieces(weight, block, piece)
    return Quantized(packed, scales, bits, columns)


def rounded(weight: Rows, bits: int, block: int = BLOCK) -> Float:
    """`dequantize(quantize(weight, bits, block))`, without packing in between."""
    out, columns = weight.shape
    numbers = np.empty((out, pad_to_block(columns, block)), np.float32)

    def piece(rows: slice, weights: Float) -> None:
        scales = best_scales(weights, bits)
        own = numbers[rows].reshape(weights.shape)
        np.multiply(centred_codes(weights, scales, bits), scales[..., None], out=own)

    _in_pieces(weight, block, piece)
    return numbers[:, :columns]


def _in_pieces(weight: Rows, block: int, piece: Callable[[slice, Float], None]) -> None:
    """Have `piece` work on some rows of a matrix at a time, [rows, blocks, block], padded with zeros; on all cores."""
    out, columns = weight.shape
    padded = pad_to_block(columns, block)
    rows = max(1, PIECE // padded)

    def work(start: int) -> None:
        some = slice(start, min(start + rows, out))
        values = weight[some]
        if padded > columns:
            values = np.pad(values, ((0, 0), (0, padded - columns)))
        piece(some, np.ascontiguousarray(values, np.float32).reshape(len(values), -1, block))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(work, range(0, out, rows)))


def stacked(matrices: Sequence[Quantized]) -> Quantized:
    """Matrices of the same input on top of each other: the same numbers, at the most bits of any.

    All are of the same block size.
    """
    bits = max(matrix.bits for matrix in matrices)
    same = [_widened(matrix, bits) for matrix in matrices]
    packed = np.concatenate([matrix.packed for matrix in same])
    return Quantized(packed, np.concatenate([matrix.scales for matrix in same]), bits, matrices[0].columns)


def beside(left: Quantized, right: Quantized) -> Quantized:
    """Two matrices of as many rows and bits and the same block size side by side.

    `left` is of whole blocks, or else both are rounded anew.
    """
    if left.columns % left.block:
        return quantize(np.concatenate([dequantize(left), dequantize(right)], axis=1), left.bits, left.block)
    packed = np.concatenate([left.packed, right.packed], axis=1)
    scales = np.concatenate([left.scales, right.scales], axis=1)
    return Quantized(packed, scales, left.bits, left.columns + right.columns)


def _widened(quantized: Quantized, bits: int) -> Quantized:
    """The same numbers in more bits: codes are counted from another middle."""
    if quantized.bits == bits:
        return quantized
    codes = unpack(quantized.packed, quantized.bits) + np.uint8(2 ** (bits - 1) - 2 ** (quantized.bits - 1))
    packed = pack(codes.reshape(*quantized.scales.shape, quantized.block), bits)
    return Quantized(packed, quantized.scales, bits, quantized.columns)


def dequantize(quantized: Quantized) -> Float:
    """The matrix [out, in] that the kernels see."""
    codes = unpack(quantized.packed, quantized.bits)
    rows, blocks = quantized.scales.shape
    centred = codes.reshape(rows, blocks, quantized.block).astype(np.float32) - np.float32(2 ** (quantized.bits - 1))
    matrix: Float = (centred * quantized.scales[..., None]).reshape(rows, -1)[:, : quantized.columns]
    return matrix
