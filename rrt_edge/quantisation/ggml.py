"""Blocks of GGML's types as ONNX Runtime's: the same numbers, where its kernels can say them exactly.

GGML's layouts: https://github.com/ggml-org/ggml, `block_q4_0` and the like in src/ggml-common.h.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rrt_edge.quantisation.blocks import Quantized
from rrt_edge.quantisation.packing import pack

GRID = 32  # weights of a block in all of these types
HALF = 2  # bytes of a scale in float16
MIDDLE_4, MIDDLE_8 = 8, 128  # the codes of zero


def carried(kind: str, rows: NDArray[np.uint8]) -> Quantized | None:
    """A matrix of a GGML type, its rows [out, bytes], without another rounding; None where that cannot be.

    Q4_0 keeps its 4 bits and Q8_0 its 8. A block of Q4_1 is `code * scale + least`: in 8 bits it is exact where the
    least is a whole number of scales, since then its codes are only shifted.
    """
    if kind not in ("Q4_0", "Q4_1", "Q8_0"):
        return None
    size = {"Q4_0": HALF + GRID // 2, "Q4_1": 2 * HALF + GRID // 2, "Q8_0": HALF + GRID}[kind]
    blocks = rows.reshape(len(rows), -1, size)
    scales = _halves(blocks[..., :HALF])
    columns = blocks.shape[1] * GRID
    if kind == "Q8_0":
        return _quantized(blocks[..., HALF:] ^ np.uint8(MIDDLE_8), scales, 8, columns)  # bytes with a sign
    if kind == "Q4_0":
        return _quantized(_nibbles(blocks[..., HALF:]), scales, 4, columns)
    least = _halves(blocks[..., HALF : 2 * HALF])
    steps = np.rint(np.divide(least, scales, out=np.zeros_like(least), where=scales != 0))
    inside = (np.abs(steps) < MIDDLE_8 - 2 * MIDDLE_4) & (steps * scales == least)
    if not inside.all():
        return None
    codes = _nibbles(blocks[..., 2 * HALF :]).astype(np.int16) + steps.astype(np.int16)[..., None] + MIDDLE_8
    return _quantized(codes.astype(np.uint8), scales, 8, columns)


def _halves(bytes_of_scales: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[.., 2] as numbers [..]."""
    return np.ascontiguousarray(bytes_of_scales).view(np.float16)[..., 0].astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The codes of blocks [.., 16]: the first half of a block is in the low nibbles."""
    return np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=-1)


def _quantized(codes: NDArray[np.uint8], scales: NDArray[np.float32], bits: int, columns: int) -> Quantized:
    return Quantized(pack(np.ascontiguousarray(codes), bits), scales, bits, columns)
