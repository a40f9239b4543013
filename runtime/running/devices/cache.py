"""Keys and values of one sequence in a device's memory, grown in steps; the device writes new rows where they stay."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.running.devices.loaded import LoadedGraphs

if TYPE_CHECKING:
    from onnxruntime import OrtValue

STEP = 256  # rows a buffer grows by at least: room that is not used costs memory alone
SHARE = 4  # or this part of what is held, so that long texts are not copied often


@dataclass(eq=False)
class Buffer:
    """Keys and values of one depth's layers, `planes[2 * layer]` and `planes[2 * layer + 1]`: [1, KV, room, D] each.

    Where forks share it, the first rows up to `used` stay as they are.
    """

    planes: list[OrtValue]
    room: int = 0
    used: int = 0
    shared: bool = False

    def takes(self, start: int, stop: int) -> bool:
        """Whether rows from `start` to `stop` can be written as it is."""
        return stop <= self.room and not (self.shared and self.used > start)


class DeviceCache:
    """Keys and values on a device, for the KV rule `exact`: each depth holds the rows from position 0 on.

    Layers that attend to a sliding window keep all rows: the device looks at those within the window.
    """

    def __init__(self, graphs: LoadedGraphs) -> None:
        self.graphs = graphs
        self.positions: list[list[int]] = [[] for _ in range(graphs.architecture.loops)]
        self._buffers = [Buffer([]) for _ in self.positions]
        graphs.closing.add(self)

    @property
    def lengths(self) -> list[int]:
        """Rows that have run each depth."""
        return [len(positions) for positions in self.positions]

    def room(self, depth: int) -> tuple[int, int]:
        """Rows that a depth holds, and rows its buffer is for."""
        return len(self.positions[depth - 1]), self._buffers[depth - 1].room

    def room_for(self, depth: int, count: int) -> Buffer:
        """The buffer of a depth, with room for so many rows more; another one where it had to grow.

        Raises:
            OutOfMemoryError: there is no room for it.
        """
        start = len(self.positions[depth - 1])
        buffer = self._buffers[depth - 1]
        if not buffer.takes(start, start + count):
            room = min(room_of(start), room_of(self.graphs.context, 0))
            buffer = self._buffers[depth - 1] = self._grown(buffer, max(room, room_of(start + count, 0)))
        return buffer

    def add(self, depth: int, count: int, position: int) -> None:
        """The device has written so many rows, at positions from `position` on, behind those the depth had."""
        positions = self.positions[depth - 1]
        positions.extend(range(position, position + count))
        self._buffers[depth - 1].used = len(positions)

    @property
    def keeps_all(self) -> bool:
        return True

    def reaches(self, length: int) -> bool:
        """Return True: a device's cache keeps all rows."""
        return True

    def truncate(self, length: int) -> None:
        """Forget the rows at position `length` and behind; with none left, their memory too."""
        for index, positions in enumerate(self.positions):
            del positions[bisect_left(positions, length) :]
            if not positions:
                self._buffers[index] = Buffer([])

    def fork(self) -> DeviceCache:
        """Another cache of the same rows. Nothing is copied until both have added rows, and then by one of them."""
        other = DeviceCache.__new__(DeviceCache)
        other.graphs = self.graphs
        other.positions = [list(positions) for positions in self.positions]
        other._buffers = list(self._buffers)
        other.graphs.closing.add(other)
        for buffer in self._buffers:
            buffer.shared = True
        return other

    def copy_last(self, count: int, depth: int, to: int) -> None:
        """For KV rules that the device does not follow."""
        raise NotImplementedError("the KV rule exact copies no rows")

    def close(self) -> None:
        """Give the memory back; nothing is held any more."""
        self.truncate(0)

    def rows(self, depth: int, group: int) -> tuple[int, list[NDArray[Any]]]:
        """Return what `KVCache.rows` returns, copied to the host in the types that the bundle keeps on the CPU."""
        count, planes = len(self.positions[depth - 1]), self._buffers[depth - 1].planes
        shape = self.graphs.architecture
        layers = shape.kv_groups[group]
        sides = []
        for side in (0, 1):
            whole = np.zeros((len(layers), shape.key_value_heads, count, shape.head_dim), np.float32)
            for index, layer in enumerate(layers if planes else ()):
                whole[index] = self.graphs.download(planes[2 * layer + side])[0, :, :count]
            sides.append(whole)
        return 0, sides if shape.kv_bits == 32 else quantized(sides)

    def restore(
        self, depth: int, group: int, first: int, planes: Sequence[NDArray[Any]], positions: Sequence[int]
    ) -> None:
        """Take what `rows` returned, into an empty cache. Dropped rows were out of every window: zeros replace them."""
        shape, count = self.graphs.architecture, len(positions)
        self.positions[depth - 1] = list(positions)
        if not count:
            return
        room = room_of(count, 0)
        buffer = self._buffers[depth - 1]
        if not buffer.planes:
            buffer = self._buffers[depth - 1] = self._grown(Buffer([]), room)
            buffer.used = count
        for side, rows in enumerate(planes if shape.kv_bits == 32 else dequantized(planes)):
            for index, layer in enumerate(shape.kv_groups[group]):
                padded = np.zeros((1, shape.key_value_heads, room, shape.head_dim), self.graphs.dtype)
                padded[0, :, first:count] = rows[index]
                buffer.planes[2 * layer + side] = self.graphs.plane(padded)

    def _grown(self, buffer: Buffer, room: int) -> Buffer:
        shape, graphs = self.graphs.architecture, self.graphs
        size = buffer_bytes(shape, room, graphs.dtype)
        graphs.budget.take(size)
        try:
            if buffer.planes:
                planes = [graphs.grown(plane, room) for plane in buffer.planes]
            else:
                nothing = np.zeros((1, shape.key_value_heads, room, shape.head_dim), graphs.dtype)
                planes = [graphs.plane(nothing) for _ in range(2 * shape.layers_per_block)]
        except BaseException:
            graphs.budget.give(size)
            raise
        made = Buffer(planes, room)
        graphs.budget.give_with(made, size)
        return made


def room_of(rows: int, spare: int = SHARE) -> int:
    """Rows of a buffer that holds so many, and a share of them more where there is one."""
    room = rows + (rows // spare if spare else 0)
    return max(1, -(-room // STEP)) * STEP


def buffer_bytes(shape: Architecture, room: int, dtype: type[np.generic]) -> int:
    """Return the bytes that the planes of one depth take."""
    return 2 * shape.layers_per_block * shape.key_value_heads * room * shape.head_dim * np.dtype(dtype).itemsize


def quantized(planes: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Keys and values [.., D] as integers, and a scale [.., 1] for each row and head, as the loop graph keeps them."""
    scales = [np.maximum(np.abs(plane).max(axis=-1, keepdims=True) / 127, 1e-12).astype(np.float32) for plane in planes]
    whole = [np.rint(plane / scale).astype(np.int8) for plane, scale in zip(planes, scales, strict=True)]
    return [*whole, *scales]


def dequantized(planes: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Return the keys and values that `quantized` made, as float32."""
    return [whole * scale for whole, scale in zip(planes[:2], planes[2:], strict=True)]
