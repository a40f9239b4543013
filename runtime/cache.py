"""Keys and values of one sequence, a buffer for each depth, grown in steps so that little unused room is bound."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.manifest import Architecture

Float = NDArray[np.float32]
STEP = 64  # rows a buffer grows by: attention costs what is bound, copying what is held


@dataclass
class _Buffer:
    """Keys and values [layers, 1, KV, room, D]. Where forks share it, the first `used` rows stay as they are."""

    keys: Float
    values: Float
    used: int = 0
    shared: bool = False

    def grown(self, held: int, room: int) -> _Buffer:
        """A copy of the first rows with room for more."""
        # Zeros, not empty: masked rows are multiplied by a weight of 0, which leaves no trace of numbers but of NaN.
        shape = (*self.keys.shape[:3], room, self.keys.shape[4])
        larger = _Buffer(np.zeros(shape, np.float32), np.zeros(shape, np.float32), held)
        larger.keys[:, :, :, :held] = self.keys[:, :, :, :held]
        larger.values[:, :, :, :held] = self.values[:, :, :, :held]
        return larger


class KVCache:
    """Per depth, keys and values of rows at ascending positions, `positions[depth - 1]`.

    Rows reach the depths in order, so no depth holds a row that the one before it lacks.
    """

    def __init__(self, architecture: Architecture) -> None:
        shape = architecture
        empty = np.zeros((shape.layers_per_block, 1, shape.key_value_heads, 0, shape.head_dim), np.float32)
        self.positions: list[list[int]] = [[] for _ in range(shape.loops)]
        self._buffers = [_Buffer(empty, empty) for _ in range(shape.loops)]

    @property
    def lengths(self) -> list[int]:
        """Valid rows of each depth."""
        return [len(held) for held in self.positions]

    def buffers(self, depth: int) -> tuple[Float, Float]:
        """Keys and values [layers, 1, KV, room, D] of a depth; other arrays after it has grown."""
        buffer = self._buffers[depth - 1]
        return buffer.keys, buffer.values

    def append(self, depth: int, keys: Float, values: Float, position: int) -> None:
        """Add rows [layers, KV, S, D] at consecutive positions from `position` on, behind those a depth has."""
        held, count = self.positions[depth - 1], keys.shape[2]
        start, stop = len(held), len(held) + count
        buffer = self._buffers[depth - 1]
        if stop > buffer.keys.shape[3] or (buffer.shared and buffer.used > start):
            buffer = self._buffers[depth - 1] = buffer.grown(start, -(-stop // STEP) * STEP)
        buffer.keys[:, 0, :, start:stop] = keys
        buffer.values[:, 0, :, start:stop] = values
        buffer.used = stop
        held.extend(range(position, position + count))

    def copy_last(self, count: int, depth: int, to: int) -> None:
        """Add the last rows of a depth to another as well."""
        stop = len(self.positions[depth - 1])
        keys, values = (buffer[:, 0, :, stop - count : stop] for buffer in self.buffers(depth))
        self.append(to, keys, values, self.positions[depth - 1][stop - count])

    def truncate(self, length: int) -> None:
        """Forget the rows at position `length` and behind."""
        for held in self.positions:
            del held[bisect_left(held, length) :]

    def fork(self) -> KVCache:
        """Another cache of the same rows. Nothing is copied until both have added rows, and then by one of them."""
        other = KVCache.__new__(KVCache)
        other.positions = [list(held) for held in self.positions]
        other._buffers = list(self._buffers)
        for buffer in self._buffers:
            buffer.shared = True
        return other
