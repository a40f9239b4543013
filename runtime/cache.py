"""Keys and values of one sequence, a buffer for each depth, grown in steps so that little unused room is bound."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.manifest import Architecture

Float = NDArray[np.float32]
STEP = 64  # rows a buffer grows by: attention costs what is bound, copying what is held


class KVCache:
    """Per depth, keys and values [layers, 1, KV, room, D] of rows at ascending positions, `positions[depth - 1]`.

    Rows reach the depths in order, so no depth holds a row that the one before it lacks.
    """

    def __init__(self, architecture: Architecture) -> None:
        shape = architecture
        empty = np.zeros((shape.layers_per_block, 1, shape.key_value_heads, 0, shape.head_dim), np.float32)
        self.positions: list[list[int]] = [[] for _ in range(shape.loops)]
        self._keys = [empty] * shape.loops
        self._values = [empty] * shape.loops

    @property
    def lengths(self) -> list[int]:
        """Valid rows of each depth."""
        return [len(held) for held in self.positions]

    def buffers(self, depth: int) -> tuple[Float, Float]:
        """Keys and values of a depth; other arrays after it has grown."""
        return self._keys[depth - 1], self._values[depth - 1]

    def append(self, depth: int, keys: Float, values: Float, position: int) -> None:
        """Add rows [layers, KV, S, D] at consecutive positions from `position` on, behind those a depth has."""
        index, count = depth - 1, keys.shape[2]
        start = len(self.positions[index])
        stop = start + count
        if stop > self._keys[index].shape[3]:
            room = -(-stop // STEP) * STEP
            self._keys[index] = _grown(self._keys[index], start, room)
            self._values[index] = _grown(self._values[index], start, room)
        self._keys[index][:, 0, :, start:stop] = keys
        self._values[index][:, 0, :, start:stop] = values
        self.positions[index].extend(range(position, position + count))

    def copy_last(self, count: int, depth: int, to: int) -> None:
        """Add the last rows of a depth to another as well."""
        stop = len(self.positions[depth - 1])
        keys, values = (buffer[:, 0, :, stop - count : stop] for buffer in self.buffers(depth))
        self.append(to, keys, values, self.positions[depth - 1][stop - count])

    def truncate(self, length: int) -> None:
        """Forget the rows at position `length` and behind."""
        for held in self.positions:
            del held[bisect_left(held, length) :]


def _grown(buffer: Float, held: int, room: int) -> Float:
    # Zeros, not empty: masked rows are multiplied by a weight of 0, which leaves no trace of numbers but of NaN.
    larger = np.zeros((*buffer.shape[:3], room, buffer.shape[4]), np.float32)
    larger[:, :, :, :held] = buffer[:, :, :, :held]
    return larger
