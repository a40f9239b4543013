"""What runs the block: rows of one sequence through some depths, or of several sequences through one each.

`Graph` is the loop graph on the CPU, `DeviceGraph` the block driven depth by depth on a GPU; decoder and engine work
with either.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.kv_rules import EXACT, KVRule
from rrt_edge.runtime.running.hidden import Hidden

Float = NDArray[np.float32]
Int = NDArray[np.int64]
NEVER = 2.0  # a threshold no probability reaches
ALWAYS = -1.0  # one that every probability reaches


class Cache(Protocol):
    """Keys and values of one sequence: rows at ascending positions, `positions[depth - 1]`, for each depth.

    Rows reach the depths in order, so no depth holds a row that the one before it lacks.
    """

    positions: list[list[int]]

    @property
    def lengths(self) -> list[int]:
        """Rows that have run each depth."""

    def room(self, depth: int) -> tuple[int, int]:
        """Rows that a depth holds, and rows its buffers are for; where layers hold different rows, the most."""

    @property
    def keeps_all(self) -> bool:
        """Whether no row was dropped so far, as a sliding window does."""

    def reaches(self, length: int) -> bool:
        """Whether all is held that a token at position `length` attends to, at every depth."""

    def truncate(self, length: int) -> None:
        """Forget the rows at position `length` and behind."""

    def fork(self) -> Self:
        """Another cache of the same rows. Nothing is copied until both have added rows, and then by one of them."""

    def copy_last(self, count: int, depth: int, to: int) -> None:
        """Add the last rows of a depth to another as well."""

    def rows(self, depth: int, group: int) -> tuple[int, Sequence[NDArray[Any]]]:
        """Rows dropped, and the planes [layers, KV, n, width] of those held, of a KV group at a depth."""

    def restore(
        self, depth: int, group: int, first: int, planes: Sequence[NDArray[Any]], positions: Sequence[int]
    ) -> None:
        """Take what `rows` returned, and the positions of all rows of the depth, into an empty cache."""


CacheT = TypeVar("CacheT", bound=Cache)
BindingT = TypeVar("BindingT")


@dataclass(frozen=True)
class Call:
    """Rows of one sequence for a run through depths `first` to `last`.

    Attributes:
        rows: token ids [S] entering depth 1, or hidden states [S, H] that have run `first - 1` depths.
        position: of the first of all rows, those in `exited` included; the others follow.
        threshold: the run stops after the first depth at which the last row's gate reaches it; by default none.
        logit_rows: the rows whose logits are asked for, as ascending indices into `rows`.
        exited: states [F, H] of rows that left before depth `first`, in front of the others. They give these depths
            keys and values only; under a KV rule that projects them.
        stayed: [S], 1 less the gate that each row had at the depth before, where the gate is a hazard; by default 1, of
            rows that enter depth 1, or whose gates nobody asks for.
    """

    rows: Int | Hidden
    position: int
    first: int
    last: int
    threshold: float = NEVER
    logit_rows: Sequence[int] = ()
    exited: Hidden | None = None
    stayed: Float | None = None


@dataclass(frozen=True)
class Pass:
    """What a run returned, for a sequence of S rows that ran depths `first` to `last`.

    `logits` [R, V] of the rows asked for, `hidden` [S, H] and `gate` [S] after the last depth run; `gates` of the last
    row after each depth, empty where a device was not made to wait for them. The new keys and values are in the cache.
    """

    first: int
    last: int
    logits: Float
    hidden: Hidden
    gate: Float
    gates: tuple[float, ...]


@dataclass(frozen=True)
class Part(Generic[CacheT]):
    """Rows of one sequence for a step: token ids [n] entering depth 1, or hidden states [n, H] entering `depth`.

    They stand at consecutive positions from `position` on, behind those whose states `exited` [f, H] give the depth
    keys and values only. `thresholds` [n]: the gate that each row must reach for its logits to be computed. `stayed`
    [n]: as in `Call`.
    """

    cache: CacheT
    depth: int
    rows: Int | Hidden
    position: int
    thresholds: Float
    exited: Hidden | None = None
    stayed: Float | None = None


@dataclass(frozen=True)
class PartDone:
    """What a step returned for a part: `hidden` [n, H], `gate` [n], `logits` [R, V] of rows that reached theirs."""

    hidden: Hidden
    gate: Float
    logits: Float


class Runner(Protocol[CacheT, BindingT]):
    """A bundle ready to run, with caches and bindings of its own kind."""

    architecture: Architecture

    @property
    def rules(self) -> tuple[KVRule, ...]:
        """The KV rules it can follow."""

    @property
    def bits(self) -> int:
        """The bits of the numbers it computes with: 16 or 32."""

    @property
    def slots(self) -> int:
        """Sequences that a step serves at most."""

    @property
    def most_rows(self) -> int:
        """Rows of a part for which sequences still share a step."""

    @property
    def no_rows(self) -> Hidden:
        """No hidden states, [0, H]."""

    def new_cache(self, rule: KVRule = EXACT) -> CacheT:
        """A cache that holds nothing, of a sequence that follows a KV rule."""

    def hidden(self, rows: Float) -> Hidden:
        """Hidden states [n, H] from the host, where this runner keeps them."""

    def kv_bytes(self, tokens: int, rule: KVRule = EXACT) -> int:
        """Return the bytes that a cache of so many tokens takes."""

    def bind(self) -> BindingT:
        """Return a binding, with which one caller at a time runs."""

    def close(self) -> None:
        """Give all memory back; nobody can go on."""

    def run(self, binding: BindingT, cache: CacheT, call: Call) -> Pass:
        """Run rows of one sequence through some depths, stopping where the last row's gate says so.

        Raises:
            RRTEdgeError: onnxruntime failed.
        """

    def step(self, binding: BindingT, parts: Sequence[Part[CacheT]]) -> list[PartDone]:
        """Run several sequences' rows through one depth each, at most `slots` of them.

        Raises:
            RRTEdgeError: onnxruntime failed.
        """


def stayed_of(run: Call | Part[Any]) -> Float:
    """`stayed` of all rows."""
    return np.ones(len(run.rows), np.float32) if run.stayed is None else run.stayed


def last_stayed(count: int, gate: float) -> Float:
    """`stayed` of rows of which the last had this gate, and the gates of the others are not asked for."""
    stayed = np.ones(count, np.float32)
    stayed[-1] = 1 - gate
    return stayed


AnyRunner = Runner[Any, Any]  # for those who hand caches and bindings back as they got them
