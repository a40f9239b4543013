"""The scales of blocks: a search for those that lose least, and LoRA pairs made easy to quantise."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
SHRINKS = np.linspace(1.0, 0.7, 7, dtype=np.float32)  # candidate scales, relative to those that clip nothing


def best_scales(blocks: Float, bits: int) -> Float:
    """The scales of blocks [rows, blocks, size] by a search over `SHRINKS`.

    The codes reach one step further down than up, so the block's largest weight may stand at either end: a scale may be
    negative.
    """
    middle = np.float32(2 ** (bits - 1))
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)[..., 0]
    work = np.empty_like(blocks)
    best, least = np.ones_like(largest), np.full(largest.shape, np.inf, np.float32)
    for end in (-middle, middle - 1):
        for shrink in SHRINKS if bits < 8 else SHRINKS[:1]:
            scale = largest * (shrink / end)
            scale[scale == 0] = 1.0
            difference = centred_codes(blocks, scale, bits, work)
            difference *= scale[..., None]
            difference -= blocks
            error = np.einsum("rbi,rbi->rb", difference, difference)
            better = error < least
            least[better], best[better] = error[better], scale[better]
    return best


def centred_codes(blocks: Float, scales: Float, bits: int, out: Float | None = None) -> Float:
    """The codes of blocks [rows, blocks, size] at these scales, less the middle."""
    codes = np.divide(blocks, scales[..., None], out=out)
    np.rint(codes, out=codes)
    middle = np.float32(2 ** (bits - 1))
    return np.clip(codes, -middle, middle - 1, out=codes)


def balance(a: Float, b: Float) -> tuple[Float, Float]:
    """Share each LoRA direction's size between A [r, in] and B [out, r] so that both quantise well.

    B = U S puts large and small singular directions into one block of B, whose scale the largest sets. Here every
    column of B gets the same norm, and A's row takes the rest: B A is unchanged.
    """
    factor = balancing(b)
    return a * factor[:, None], b / factor


def balancing(b: Float) -> Float:
    """What `balance` multiplies each row of A by, and divides each column of B by."""
    norms = np.linalg.norm(b, axis=0)
    norms[norms == 0] = 1.0
    common = np.float32(np.sqrt(np.mean(np.square(b)) * b.shape[0])) or np.float32(1.0)
    factor: Float = (norms / common).astype(np.float32)
    return factor
