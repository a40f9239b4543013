"""Keys and values of one sequence, a buffer for each depth, grown in steps so that little unused room is bound."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.manifest import Architecture

Float = NDArray[np.float32]
STEP = 64  # rows a buffer grows by: attention costs what is bound, copying what is held


class KVCache:
    """Per depth, keys and values [layers, 1, KV, room, D] of which the first `lengths[depth - 1]` rows are valid.

    Rows reach the depths in order, so the lengths never increase from one depth to the next: what depth d has and
    depth d + 1 lacks are the rows that wait after depth d.
    """

    def __init__(self, architecture: Architecture) -> None:
        shape = architecture
        empty = np.zeros((shape.layers_per_block, 1, shape.key_value_heads, 0, shape.head_dim), np.float32)
        self.lengths = [0] * shape.loops
        self._keys = [empty] * shape.loops
        self._values = [empty] * shape.loops

    def buffers(self, depth: int) -> tuple[Float, Float]:
        """Keys and values of a depth; other arrays after it has grown."""
        return self._keys[depth - 1], self._values[depth - 1]

    def append(self, depth: int, keys: Float, values: Float) -> None:
        """Add rows [layers, KV, S, D] behind those a depth has."""
        index = depth - 1
        start, stop = self.lengths[index], self.lengths[index] + keys.shape[2]
        if stop > self._keys[index].shape[3]:
            room = -(-stop // STEP) * STEP
            self._keys[index] = _grown(self._keys[index], start, room)
            self._values[index] = _grown(self._values[index], start, room)
        self._keys[index][:, 0, :, start:stop] = keys
        self._values[index][:, 0, :, start:stop] = values
        self.lengths[index] = stop

    def truncate(self, length: int) -> None:
        """Forget the rows at `length` and behind."""
        self.lengths = [min(held, length) for held in self.lengths]


def _grown(buffer: Float, held: int, room: int) -> Float:
    # Zeros, not empty: masked rows are multiplied by a weight of 0, which leaves no trace of numbers but of NaN.
    larger = np.zeros((*buffer.shape[:3], room, buffer.shape[4]), np.float32)
    larger[:, :, :, :held] = buffer[:, :, :, :held]
    return larger
