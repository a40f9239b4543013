"""Codes of 4 or 8 bits in bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Pack the last axis: two 4-bit codes a byte, the first in the low nibble."""
    if bits == 8:
        return codes
    low, high = codes[..., 0::2], codes[..., 1::2]
    return (low | (high << 4)).astype(np.uint8)


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Codes of 4 bits in pairs, [.., bytes, 2]; those of 8 bits as they are."""
    return packed if bits == 8 else np.stack([packed & 15, packed >> 4], axis=-1)
