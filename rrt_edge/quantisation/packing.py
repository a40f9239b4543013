"""Codes of fewer than 16 bits in bytes: 8 bits take one, fewer share it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def is_packed(bits: int) -> bool:
    """Whether weights of so many bits are codes with a scale for each block; else they are floats."""
    return bits < 16


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack the last axis: 8 / bits codes a byte, the first in the lowest bits."""
    shifts = _shifts(bits)
    together = codes.reshape(*codes.shape[:-1], -1, len(shifts)) << shifts
    packed: NDArray[np.uint8] = np.bitwise_or.reduce(together, axis=-1).astype(np.uint8)
    return packed


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """The codes of each byte, [.., bytes, 8 / bits]."""
    return (packed[..., None] >> _shifts(bits)) & np.uint8(2**bits - 1)


def _shifts(bits: int) -> NDArray[np.uint8]:
    return np.arange(0, 8, bits, dtype=np.uint8)
