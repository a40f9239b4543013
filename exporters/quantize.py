"""Block-wise weight quantisation in the layout of ONNX Runtime's MatMulNBits and GatherBlockQuantized."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
BLOCK = 32  # weights that share a scale
SHRINKS = np.linspace(1.0, 0.7, 7, dtype=np.float32)  # candidate scales, relative to those that clip nothing
PIECE = 1 << 16  # weights searched at a time: what stays in a core's cache


@dataclass(frozen=True)
class Quantized:
    """A matrix [out, in] in blocks of `BLOCK` along `in`.

    `packed` uint8 [out, blocks, BLOCK * bits / 8], low nibble first; `scales` float32 [out, blocks]. A weight is
    (q - 2^(bits - 1)) * scale. Zero points would lower the error by 4 % at 4 bits, but cost 15 % of the speed of a
    product of one row (measured, AVX2) and 2 % of the bytes.
    """

    packed: NDArray[np.uint8]
    scales: Float
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
    codes, scales = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Quantized(_pack(codes, bits), scales, bits, columns)


def _best_codes(blocks: Float, bits: int) -> tuple[NDArray[np.uint8], Float]:
    """Codes and scales of blocks [rows, blocks, BLOCK] by a search over `SHRINKS`.

    The codes reach one step further down than up, so the block's largest weight may stand at either end: a scale may be
    negative.
    """
    middle = np.float32(2 ** (bits - 1))
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    work = np.empty_like(blocks)

    def rounded(scale: Float) -> Float:
        """Codes less the middle, in `work`."""
        np.divide(blocks, scale[..., None], out=work)
        np.rint(work, out=work)
        return np.clip(work, -middle, middle - 1, out=work)

    best, least = np.ones_like(largest), np.full(largest.shape, np.inf, np.float32)
    for end in (-middle, middle - 1):
        for shrink in SHRINKS if bits < 8 else SHRINKS[:1]:
            scale = largest * (shrink / end)
            scale[scale == 0] = 1.0
            difference = rounded(scale)
            difference *= scale[..., None]
            difference -= blocks
            error = np.einsum("rbi,rbi->rb", difference, difference)
            better = error < least
            least[better], best[better] = error[better], scale[better]
    return (rounded(best) + middle).astype(np.uint8), best


def _pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack the last axis: two 4-bit codes a byte, the first in the low nibble."""
    if bits == 8:
        return codes
    low, high = codes[..., 0::2], codes[..., 1::2]
    return (low | (high << 4)).astype(np.uint8)


def dequantize(quantized: Quantized) -> Float:
    """The matrix [out, in] that the kernels see."""
    packed = quantized.packed
    codes = packed if quantized.bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1)
    rows, blocks = quantized.scales.shape
    centred = codes.reshape(rows, blocks, BLOCK).astype(np.float32) - np.float32(2 ** (quantized.bits - 1))
    matrix: Float = (centred * quantized.scales[..., None]).reshape(rows, -1)[:, : quantized.columns]
    return matrix


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
