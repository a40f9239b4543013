"""Keys and values of one sequence, a buffer for each depth, grown in steps so that little unused room is bound."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.manifest import Architecture

Planes = Sequence[NDArray[Any]]  # in the order of Architecture.kv_planes
STEP = 64  # rows a buffer grows by at least: attention costs what is bound, copying what is held
SHARE = 16  # or this part of what is held, so that long texts are not copied often


def no_rows(architecture: Architecture) -> list[NDArray[Any]]:
    """Planes [layers, 1, KV, 0, width]."""
    shape = (architecture.layers_per_block, 1, architecture.key_value_heads, 0)
    return [np.zeros((*shape, width), kind) for kind, width in architecture.kv_planes.values()]


@dataclass
class _Buffer:
    """Keys, values and what belongs to them, [layers, 1, KV, room, width] each.

    Where forks share it, the first `used` rows stay as they are.
    """

    planes: list[NDArray[Any]]
    used: int = 0
    shared: bool = False

    def takes(self, start: int, stop: int) -> bool:
        """Whether rows from `start` to `stop` can be written as it is."""
        return stop <= self.planes[0].shape[3] and not (self.shared and self.used > start)

    def grow(self, held: int, rows: int) -> None:
        """Make room for so many rows in all, keeping the first `held`; plane by plane, so that little is held twice."""
        room = -(-max(rows, held + held // SHARE) // STEP) * STEP
        for index, old in enumerate(self.planes):
            # Zeros: masked rows are multiplied by a weight of 0, which leaves no trace of numbers but of NaN.
            self.planes[index] = np.zeros((*old.shape[:3], room, old.shape[4]), old.dtype)
            self.planes[index][:, :, :, :held] = old[:, :, :, :held]


class KVCache:
    """Per depth, keys and values of rows at ascending positions, `positions[depth - 1]`.

    Rows reach the depths in order, so no depth holds a row that the one before it lacks.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.positions: list[list[int]] = [[] for _ in range(architecture.loops)]
        self._buffers = [_Buffer(no_rows(architecture)) for _ in range(architecture.loops)]

    @property
    def lengths(self) -> list[int]:
        """Valid rows of each depth."""
        return [len(held) for held in self.positions]

    def buffers(self, depth: int) -> Planes:
        """The planes [layers, 1, KV, room, width] of a depth; other arrays after it has grown."""
        return self._buffers[depth - 1].planes

    def takes(self, depth: int, count: int) -> bool:
        """Whether a depth can hold so many rows more without being copied."""
        start = len(self.positions[depth - 1])
        return self._buffers[depth - 1].takes(start, start + count)

    def append(self, depth: int, rows: Planes, position: int) -> None:
        """Add rows [layers, KV, S, width] at consecutive positions from `position` on, behind those a depth has."""
        held, count = self.positions[depth - 1], rows[0].shape[2]
        start, stop = len(held), len(held) + count
        buffer = self._buffers[depth - 1]
        if not buffer.takes(start, stop):
            if buffer.shared:
                buffer = self._buffers[depth - 1] = _Buffer(list(buffer.planes))
            buffer.grow(start, stop)
        for plane, new in zip(buffer.planes, rows, strict=True):
            plane[:, 0, :, start:stop] = new
        buffer.used = stop
        held.extend(range(position, position + count))

    def copy_last(self, count: int, depth: int, to: int) -> None:
        """Add the last rows of a depth to another as well."""
        stop = len(self.positions[depth - 1])
        rows = [plane[:, 0, :, stop - count : stop] for plane in self.buffers(depth)]
        self.append(to, rows, self.positions[depth - 1][stop - count])

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
