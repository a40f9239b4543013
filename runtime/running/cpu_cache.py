"""Keys and values of one sequence, buffers for each slot, grown in steps so that little unused room is bound.

Layers that attend to a sliding window keep what they may still see, and some rows more to go back over.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.kv_rules import EXACT, KVRule
from rrt_edge.runtime.errors import OutOfMemoryError
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.system.closing import Closing, closed

Planes = Sequence[NDArray[Any]]  # in the order of Architecture.kv_planes
STEP = 64  # rows a buffer grows by at least: attention costs what is bound, copying what is held. Buffers have a
# multiple of it: sums over more rows of nothing then have the same bits.
SHARE = 16  # or this part of what is held, so that long texts are not copied often
SPARE = 64  # rows kept in front of a window, so that going back over as many loses nothing


def no_rows(architecture: Architecture, group: int = 0) -> list[NDArray[Any]]:
    """Planes [layers, 1, KV, 0, width] of a KV group."""
    shape = (len(architecture.kv_groups[group]), 1, architecture.key_value_heads, 0)
    return [np.zeros((*shape, width), kind) for kind, width in architecture.kv_planes.values()]


@dataclass
class _Buffer:
    """Keys, values and what belongs to them, [layers, 1, KV, room, width] each.

    Rows before `first` were dropped: `room` counts from there, `used` from the beginning. With a `window`, a row sees
    so many, itself included. Where forks share it, the first rows up to `used` stay as they are.
    """

    planes: list[NDArray[Any]]
    window: int | None = None
    first: int = 0
    used: int = 0
    shared: bool = False

    def takes(self, stop: int, own: int) -> bool:
        """Whether rows up to `stop` can be written as it is, those before `own` being the writer's to write over."""
        return stop - self.first <= self.planes[0].shape[3] and not (self.shared and self.used > own)

    def reaches(self, length: int) -> bool:
        """Whether it holds what the row behind the first `length` sees."""
        return not self.first or (self.window is not None and length - self.first >= self.window - 1)

    def with_room(self, length: int, rows: int, budget: KVBudget) -> _Buffer:
        """One with room for `rows` more than `length`: itself, where it need not grow and is nobody else's."""
        first, room = self.first, length - self.first
        room = max(room + rows, room + room // SHARE)
        if self.window is not None:
            keep = self.window - 1 + SPARE
            first, room = max(first, length - keep), min(room, keep + max(rows, STEP))
        room = -(-room // STEP) * STEP
        old, new = slice(first - self.first, length - self.first), slice(0, length - first)
        if not self.shared and room <= self.planes[0].shape[3]:
            for plane in self.planes:
                plane[:, :, :, new] = plane[:, :, :, old]
            self.first = first
            return self
        grown = self if not self.shared else _Buffer(list(self.planes), self.window)
        taken = 0
        try:
            for index, plane in enumerate(self.planes):  # plane by plane, so that little is held twice
                shape = (*plane.shape[:3], room, plane.shape[4])
                size = math.prod(shape) * plane.dtype.itemsize
                budget.take(size)
                taken = size
                larger = _zeros(shape, plane.dtype)
                larger[:, :, :, new] = plane[:, :, :, old]
                grown.planes[index] = larger
                budget.give_with(larger, size)
                taken = 0
        except BaseException:  # planes of unequal room: nothing is held any more
            budget.give(taken)
            grown.planes, grown.first, grown.used = [plane[:, :, :, :0].copy() for plane in grown.planes], 0, 0
            raise
        grown.first = first
        return grown


def _zeros(shape: tuple[int, ...], kind: np.dtype[Any]) -> NDArray[Any]:
    """Zeros: masked rows are multiplied by a weight of 0, which leaves no trace of numbers but of NaN."""
    try:
        return np.zeros(shape, kind)
    except MemoryError as error:
        size = math.prod(shape) * kind.itemsize
        remedy = "close conversations or shorten the prompt"
        raise OutOfMemoryError(f"no memory for {size} bytes of keys or values; {remedy}") from error


class KVCache:
    """Per depth, keys and values of rows at ascending positions, `positions[depth - 1]`.

    Rows reach the depths in order, so no depth holds a row that the one before it lacks. Where the KV rule has one slot
    for all depths, each writes over what the one before it wrote of the same rows, and then holds those rows too.
    """

    def __init__(
        self,
        architecture: Architecture,
        budget: KVBudget | None = None,
        closing: Closing | None = None,
        rule: KVRule = EXACT,
    ) -> None:
        """`closing`: what closes it and its forks; `rule`: says how many slots the depths have."""
        self.budget, self._closing, self._closed = budget or KVBudget(), closing or Closing(), False
        self._closing.add(self)
        self.positions: list[list[int]] = [[] for _ in range(architecture.loops)]
        groups = architecture.kv_groups
        whole = len(groups) == 1
        self._layers: list[slice | list[int]] = [slice(None)] if whole else [list(group) for group in groups]
        self._buffers = [
            [_Buffer(no_rows(architecture, group), architecture.window(depth, group)) for group in range(len(groups))]
            for depth in range(1, rule.slots(architecture.loops) + 1)
        ]

    @property
    def lengths(self) -> list[int]:
        """Rows that have run each depth."""
        return [len(positions) for positions in self.positions]

    @property
    def _one_slot(self) -> bool:
        return len(self._buffers) == 1

    def _slot(self, depth: int) -> list[_Buffer]:
        """The buffers of a depth by KV group."""
        return self._buffers[0 if self._one_slot else depth - 1]

    def buffers(self, depth: int, group: int = 0) -> Planes:
        """The planes [layers, 1, KV, room, width] of a KV group at a depth; other arrays after it has grown."""
        return self._slot(depth)[group].planes

    def valid_rows(self, depth: int) -> list[int]:
        """Valid rows of each KV group's buffers at a depth."""
        return [len(self.positions[depth - 1]) - buffer.first for buffer in self._slot(depth)]

    def room(self, depth: int) -> tuple[int, int]:
        """Rows that a depth holds, and rows its buffers are for; of the KV group that has most."""
        return max(self.valid_rows(depth)), max(buffer.planes[0].shape[3] for buffer in self._slot(depth))

    def takes(self, depth: int, group: int, count: int) -> bool:
        """Whether a depth's buffer can hold so many rows more as it is."""
        return self._slot(depth)[group].takes(len(self.positions[depth - 1]) + count, self._own(depth))

    def _own(self, depth: int) -> int:
        """Before which row no fork has any of those that a depth is about to write: in one slot, depth 1 wrote them."""
        return len(self.positions[0 if self._one_slot else depth - 1])

    def append(self, depth: int, rows: Planes, position: int) -> None:
        """Add rows [layers, KV, S, width] at consecutive positions from `position` on, behind those a depth has."""
        self._add(depth, [[plane[layers] for plane in rows] for layers in self._layers], position)

    def rows(self, depth: int, group: int) -> tuple[int, Planes]:
        """Rows dropped, and the planes [layers, KV, n, width] of those held, of a KV group at a depth."""
        buffer = self._slot(depth)[group]
        count = len(self.positions[depth - 1]) - buffer.first
        return buffer.first, [plane[:, 0, :, :count] for plane in buffer.planes]

    def restore(self, depth: int, group: int, first: int, planes: Planes, positions: Sequence[int]) -> None:
        """Take what `rows` returned, and the positions of all rows of the depth, into an empty cache.

        One slot is restored once, for all depths.
        """
        window, whole = self._slot(depth)[group].window, []
        for plane in planes:
            layers, heads, count, width = plane.shape
            shape = (layers, 1, heads, -(-count // STEP) * STEP, width)
            size = math.prod(shape) * plane.dtype.itemsize
            self.budget.take(size)
            whole.append(_zeros(shape, plane.dtype))  # of its own, so that its bytes are given back with it
            whole[-1][:, 0, :, :count] = plane
            self.budget.give_with(whole[-1], size)
        self._slot(depth)[group] = _Buffer(whole, window, first, len(positions))
        for own in self.positions if self._one_slot else [self.positions[depth - 1]]:
            own[:] = positions

    def copy_last(self, count: int, depth: int, to: int) -> None:
        """Add the last rows of a depth to another as well."""
        if self._one_slot:
            self.positions[to - 1] += self.positions[depth - 1][len(self.positions[depth - 1]) - count :]
            return
        ends = zip(self._slot(depth), self.valid_rows(depth), strict=True)
        rows = [[plane[:, 0, :, end - count : end] for plane in buffer.planes] for buffer, end in ends]
        self._add(to, rows, self.positions[depth - 1][-count])

    def _add(self, depth: int, groups: Sequence[Planes], position: int) -> None:
        """Add rows of each KV group's layers."""
        if self._closed:
            raise closed()
        positions, count = self.positions[depth - 1], groups[0][0].shape[2]
        start, stop = len(positions), len(positions) + count
        for group, rows in enumerate(groups):
            buffer = self._slot(depth)[group]
            if not buffer.takes(stop, self._own(depth)):
                buffer = self._slot(depth)[group] = buffer.with_room(start, count, self.budget)
            for plane, new in zip(buffer.planes, rows, strict=True):
                plane[:, 0, :, start - buffer.first : stop - buffer.first] = new
            buffer.used = stop
        positions.extend(range(position, position + count))

    @property
    def keeps_all(self) -> bool:
        return all(not buffer.first for buffers in self._buffers for buffer in buffers)

    def reaches(self, length: int) -> bool:
        """Whether all is held that a token at position `length` attends to, at every depth."""
        depths = enumerate(self.positions, 1)
        return all(buf.reaches(bisect_left(held, length)) for depth, held in depths for buf in self._slot(depth))

    def truncate(self, length: int) -> None:
        """Forget the rows at position `length` and behind."""
        for depth, positions in enumerate(self.positions, 1):
            del positions[bisect_left(positions, length) :]
            if not positions:
                buffers = self._slot(depth)
                for group, buffer in enumerate(buffers):
                    if buffer.first:
                        buffers[group] = _Buffer([plane[:, :, :, :0] for plane in buffer.planes], buffer.window)

    def close(self) -> None:
        """Give the memory back; nothing is held any more, and nothing is taken."""
        self._closed = True
        self.truncate(0)
        for buffers in self._buffers:
            for group, buffer in enumerate(buffers):
                buffers[group] = _Buffer([plane[:, :, :, :0].copy() for plane in buffer.planes], buffer.window)

    def fork(self) -> KVCache:
        """Another cache of the same rows. Nothing is copied until both have added rows, and then by one of them.

        Rows in one slot that are on their way to deeper depths are this cache's alone.
        """
        other = KVCache.__new__(KVCache)
        other.positions = [
            list(self.positions[-1 if self._one_slot else depth]) for depth in range(len(self.positions))
        ]
        other._layers, other.budget, other._closed = self._layers, self.budget, self._closed
        other._closing = self._closing
        other._closing.add(other)
        other._buffers = [list(buffers) for buffers in self._buffers]
        for buffers in self._buffers:
            for buffer in buffers:
                buffer.shared = True
        return other
