"""Block-wise weight quantisation in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
BLOCK = 32  # weights that share a scale
SHRINKS = np.linspace(1.0, 0.7, 13, dtype=np.float32)  # candidate scales, relative to the one that clips nothing
ROWS_AT_A_TIME = 1024  # bounds the memory of the search


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] in blocks of `BLOCK` along `in`.

    `packed` uint8 [out, blocks, BLOCK * bits / 8], low nibble first; `scales` float32 [out, blocks];
    `zero_points` uint8 [out, ceil(blocks * bits / 8)]. A weight is (q - zero point) * scale.
    """

    packed: NDArray[np.uint8]
    scales: Float
    zero_points: NDArray[np.uint8]
    bits: int
    columns: int


def pad_to_block(columns: int) -> int:
    """The next multiple of `BLOCK`."""
    return -(-columns // BLOCK) * BLOCK


def quantize(weight: Float, bits: int) -> Quantized:
    """Quantise a matrix [out, in] to 4 or 8 bits: of several ranges for each block, the one with the least error."""
    out, columns = weight.shape
    padded = np.zeros((out, pad_to_block(columns)), dtype=np.float32)
    padded[:, :columns] = weight
    blocks = padded.reshape(out, -1, BLOCK)
    codes = np.empty(blocks.shape, dtype=np.uint8)
    scales = np.empty(blocks.shape[:2], dtype=np.float32)
    zeros = np.empty(blocks.shape[:2], dtype=np.uint8)
    for start in range(0, out, ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        codes[rows], scales[rows], zeros[rows] = _best_codes(blocks[rows], bits)
    return Quantized(_pack(codes, bits), scales, _pack(zeros, bits), bits, columns)


def _best_codes(blocks: Float, bits: int) -> tuple[NDArray[np.uint8], Float, NDArray[np.uint8]]:
    """Codes, scales and zero points of blocks [rows, blocks, BLOCK] by a search over `SHRINKS`."""
    top = 2**bits - 1
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)  # 0 stays exact
    best_error = np.full(low.shape, np.inf, dtype=np.float32)
    best = (np.zeros(blocks.shape, np.uint8), np.ones(low.shape, np.float32), np.zeros(low.shape, np.uint8))
    for shrink in SHRINKS if bits < 8 else SHRINKS[:1]:
        scale = (high - low) * (shrink / top)
        scale[scale == 0] = 1.0
        zero = np.clip(np.round(-low * shrink / scale), 0, top)
        codes = np.clip(np.round(blocks / scale[..., None]) + zero[..., None], 0, top)
        error = np.square((codes - zero[..., None]) * scale[..., None] - blocks).sum(axis=-1)
        better = error < best_error
        best_error[better] = error[better]
        for kept, candidate in zip(best, (codes, scale, zero), strict=True):
            kept[better] = candidate[better]
    return best


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack the last axis: two 4-bit codes a byte, the first in the low nibble."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    packed: NDArray[np.uint8] = codes[..., 0::2] | (codes[..., 1::2] << 4)
    return packed


def dequantize(quantized: Quantized) -> Float:
    """The matrix [out, in] that the kernels see."""
    blocks = quantized.scales.shape[1]
    codes = _unpack(quantized.packed, quantized.bits).astype(np.float32)
    zeros = _unpack(quantized.zero_points, quantized.bits)[:, :blocks].astype(np.float32)
    values = (codes - zeros[..., None]) * quantized.scales[..., None]
    matrix: Float = values.reshape(values.shape[0], -1)[:, : quantized.columns]
    return matrix


def _unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    if bits == 8:
        return packed
    pairs = np.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], -1)


def balance(a: Float, b: Float) -> tuple[Float, Float]:
    """Share each LoRA direction's size between A [r, in] and B [out, r] so that both quantise well.

    B = U S puts large and small singular directions into one block of B, whose scale the largest sets. Here every
    column of B gets the same norm, and A's row takes the rest: B A is unchanged.
    """
    norms = np.linalg.norm(b, axis=0)
    norms[norms == 0] = 1.0
    common = np.float32(np.sqrt(np.mean(np.square(b)) * b.shape[0])) or np.float32(1.0)
    factor = (norms / common).astype(np.float32)
    return a * factor[:, None], b / factor
