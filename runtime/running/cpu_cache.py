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


@dataclass(eq=False)
class _Buffer:
    """Keys, values and what belongs to them, [layers, 1, KV, room, width] each: a depth's part of `whole`.

    Rows before `first` were dropped: `room` counts from there, `used` from the beginning. With a `window`, a row sees
    so many, itself included. Where forks share it, the first rows up to `used` stay as they are. `whole` has all
    depths, [layers, depths, KV, room, width], so that a step may take a row of each; None while nothing is held.
    """

    planes: list[NDArray[Any]]
    window: int | None = None
    first: int = 0
    used: int = 0
    shared: bool = False
    whole: list[NDArray[Any]] | None = None
    place: int = 0  # among the depths of `whole`

    @property
    def room(self) -> int:
        rows: int = self.planes[0].shape[3]
        return rows

    def takes(self, stop: int, own: int) -> bool:
        """Whether rows up to `stop` can be written as it is, those before `own` being the writer's to write over."""
        return stop - self.first <= self.room and not (self.shared and self.used > own)

    def reaches(self, length: int) -> bool:
        """Whether it holds what the row behind the first `length` sees."""
        return not self.first or (self.window is not None and length - self.first >= self.window - 1)

    def needs(self, length: int, rows: int) -> tuple[int, int]:
        """With `rows` more than `length`: (the row before which all can be dropped, the room for the others)."""
        first, room = self.first, length - self.first
        room = max(room + rows, room + room // SHARE)
        if self.window is not None:
            keep = self.window - 1 + SPARE
            first, room = max(first, length - keep), min(room, keep + max(rows, STEP))
        return first, -(-room // STEP) * STEP

    def drop(self, first: int, length: int) -> None:
        """Drop the rows before `first`: the others move to the front."""
        for plane in self.planes:
            plane[:, :, :, : length - first] = plane[:, :, :, first - self.first : length - self.first]
        self.first = first

    def emptied(self) -> _Buffer:
        """One that holds nothing, and no memory."""
        return _Buffer([plane[:, :, :, :0].copy() for plane in self.planes], self.window)


def _with_room(
    buffers: Sequence[_Buffer], lengths: Sequence[int], firsts: Sequence[int], room: int, budget: KVBudget
) -> list[_Buffer]:
    """All depths' buffers in arrays of so much room: their rows from `firsts` to `lengths`. Those nobody else has are
    given up one by one, so that little is held twice; where memory ends, they hold nothing any more.
    """
    grown = []
    for old, first, length in zip(buffers, firsts, lengths, strict=True):
        grown.append(_Buffer(list(old.planes), old.window, first, length))
        if not old.shared:
            old.whole = None
    whole: list[NDArray[Any]] = []
    taken = 0
    try:
        for index in range(len(buffers[0].planes)):
            layers, _, heads, _, width = buffers[0].planes[index].shape
            shape, kind = (layers, len(buffers), heads, room, width), buffers[0].planes[index].dtype
            size = math.prod(shape) * kind.itemsize
            budget.take(size)
            taken = size
            whole.append(_zeros(shape, kind))
            budget.give_with(whole[-1], size)
            taken = 0
            for depth, (old, new) in enumerate(zip(buffers, grown, strict=True)):
                part = whole[-1][:, depth : depth + 1]
                kept = old.planes[index][:, :, :, new.first - old.first : new.used - old.first]
                part[:, :, :, : new.used - new.first] = kept
                new.planes[index] = part
                if not old.shared:
                    old.planes[index] = part
                del kept
    except BaseException:
        budget.give(taken)
        for old in buffers:
            if not old.shared:
                old.planes, old.first, old.used = old.emptied().planes, 0, 0
        raise
    for place, new in enumerate(grown):
        new.whole, new.place = whole, place
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
        self.stride = architecture.looping.draft_depth  # from one to the next of depths that may be side by side
        self._sides: dict[tuple[int, ...], list[Planes] | None] = {}  # as `side_by_side` says, until buffers change
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

    def fits(self, depths: Sequence[int], count: int) -> bool:
        """Whether depths can take so many rows more as they are."""
        return all(self.takes(depth, group, count) for depth in depths for group in range(len(self._layers)))

    def make_room(self, depths: Sequence[int], count: int) -> None:
        """Give depths room for so many rows more."""
        for depth in depths:
            for group in range(len(self._layers)):
                if not self.takes(depth, group, count):
                    self._make_room(depth, group, count)

    def side_by_side(self, depths: Sequence[int]) -> list[Planes] | None:
        """By KV group, the planes [layers, depths, KV, room, width] of depths a stride apart; None where they do not
        stand behind each other in the same arrays. Who writes rows there says so (`wrote`).
        """
        if self._closed:
            raise closed()
        key = tuple(depths)
        if key not in self._sides:
            self._sides[key] = self._side(depths)
        return self._sides[key]

    def _side(self, depths: Sequence[int]) -> list[Planes] | None:
        planes: list[Planes] = []
        for group in range(len(self._layers)):
            buffers = [self._slot(depth)[group] for depth in depths]
            whole, place = buffers[0].whole, buffers[0].place
            if len(depths) == 1:
                planes.append(buffers[0].planes)
                continue
            follow = [(buffer.whole is whole, buffer.place - place) for buffer in buffers]
            if whole is None or self._one_slot or follow != [(True, index) for index in range(len(depths))]:
                return None
            planes.append([plane[:, place : place + len(depths)] for plane in whole])
        return planes

    def wrote(self, depth: int, count: int, position: int) -> None:
        """So many rows at consecutive positions from `position` on were written behind those a depth has."""
        positions = self.positions[depth - 1]
        positions.extend(range(position, position + count))
        for buffer in self._slot(depth):
            buffer.used = len(positions)

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
        self._sides.clear()
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
                buffer = self._make_room(depth, group, count)
            for plane, new in zip(buffer.planes, rows, strict=True):
                plane[:, 0, :, start - buffer.first : stop - buffer.first] = new
            buffer.used = stop
        positions.extend(range(position, position + count))

    def _make_room(self, depth: int, group: int, count: int) -> _Buffer:
        """A depth's buffer of a KV group, with room for so many rows more; all depths' get the same room, but for those
        that attend to other windows."""
        own, start = self._slot(depth)[group], len(self.positions[depth - 1])
        slots, buffers, lengths, needs = [], [], [], []
        for number in sorted(range(len(self._buffers)), key=lambda number: (number % self.stride, number)):
            slot, held = self._buffers[number], len(self.positions[number])
            buffer = slot[group]
            if buffer.window == own.window:
                slots.append(slot)
                buffers.append(buffer)
                lengths.append(start if buffer is own else held)
                needs.append(buffer.needs(lengths[-1], count if buffer is own else 0))
        first, room = needs[buffers.index(own)]
        if not own.shared and room <= own.room:
            own.drop(first, start)
            return own
        room = max(room for _, room in needs)
        self._sides.clear()
        grown = _with_room(buffers, lengths, [first for first, _ in needs], room, self.budget)
        for slot, buffer in zip(slots, grown, strict=True):
            slot[group] = buffer
        return self._slot(depth)[group]

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
                        buffers[group] = buffer.emptied()
                        self._sides.clear()

    def close(self) -> None:
        """Give the memory back; nothing is held any more, and nothing is taken."""
        self._closed = True
        self.truncate(0)
        self._sides.clear()
        for buffers in self._buffers:
            for group, buffer in enumerate(buffers):
                buffers[group] = buffer.emptied()

    def fork(self) -> KVCache:
        """Another cache of the same rows. Nothing is copied until both have added rows, and then by one of them.

        Rows in one slot that are on their way to deeper depths are this cache's alone.
        """
        other = KVCache.__new__(KVCache)
        other.positions = [
            list(self.positions[-1 if self._one_slot else depth]) for depth in range(len(self.positions))
        ]
        other._sides, other.stride = {}, self.stride
        other._layers, other.budget, other._closed = self._layers, self.budget, self._closed
        other._closing = self._closing
        other._closing.add(other)
        other._buffers = [list(buffers) for buffers in self._buffers]
        for buffers in self._buffers:
            for buffer in buffers:
                buffer.shared = True
        return other
