"""Block-wise weight quantisation in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
BLOCK = 32  # weights that share a scale
SHRINKS = np.linspace(1.0, 0.7, 10, dtype=np.float32)  # candidate scales, relative to the one that clips nothing
PIECE = 1 << 16  # weights searched at a time: what stays in a core's cache


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
    rows = max(1, PIECE // padded.shape[1])
    pieces = [blocks[start : start + rows] for start in range(0, out, rows)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(_best_codes, pieces, [bits] * len(pieces)))
    codes, scales, zeros = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Quantized(_pack(codes, bits), scales, _pack(zeros, bits), bits, columns)


def _best_codes(blocks: Float, bits: int) -> tuple[NDArray[np.uint8], Float, NDArray[np.uint8]]:
    """Codes, scales and zero points of blocks [rows, blocks, BLOCK] by a search over `SHRINKS`."""
    top = np.float32(2**bits - 1)
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)  # 0 stays exact
    step = (high - low) / top
    step[step == 0] = 1.0
    zero = np.clip(np.rint(-low / step), 0, top)[..., None]
    work = np.empty_like(blocks)

    def rounded(scale: Float) -> Float:
        """Codes less the zero point, in `work`."""
        np.divide(blocks, scale[..., None], out=work)
        np.rint(work, out=work)
        return np.clip(work, -zero, top - zero, out=work)

    best, least = step.copy(), np.full(step.shape, np.inf, np.float32)
    for shrink in SHRINKS if bits < 8 else SHRINKS[:1]:
        scale = step * shrink
        difference = rounded(scale)
        difference *= scale[..., None]
        difference -= blocks
        error = np.einsum("rbi,rbi->rb", difference, difference)
        better = error < least
        least[better], best[better] = error[better], scale[better]
    codes = (rounded(best) + zero).astype(np.uint8)
    return codes, best, zero[..., 0].astype(np.uint8)


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack the last axis: two 4-bit codes a byte, the first in the low nibble."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros_like(codes[..., :1])], axis=-1)
    low, high = codes[..., 0::2], codes[..., 1::2]
    return (low | (high << 4)).astype(np.uint8)


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
