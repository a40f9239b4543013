"""`Architecture`: the shapes of a bundle's model, as its manifest states them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rrt_edge.runtime.bundle.kv_rules import EXACT, KVRule
from rrt_edge.runtime.bundle.looping import GATE_KINDS, OWN_LOOPING, Looping
from rrt_edge.runtime.bundle.manifest_reader import Fields
from rrt_edge.runtime.bundle.quantization import MOST_LAYERS
from rrt_edge.runtime.system.options import shown

KV_BITS = (8, 32)  # a key or value is an integer with a scale for its row and head, or float32
WINDOW_SPARE = 256  # rows that a cache may hold beyond a window (cpu_cache.py)
Windows = tuple[tuple[int | None, ...], ...]  # tokens a layer attends to, by loop and layer; None: all


def kv_groups(windows: Windows) -> tuple[tuple[int, ...], ...]:
    """The layers of the block whose windows are the same at every depth, together: they hold the same rows."""
    groups: dict[tuple[int | None, ...], list[int]] = {}
    for layer, pattern in enumerate(zip(*windows, strict=True)):
        groups.setdefault(pattern, []).append(layer)
    return tuple(tuple(layers) for layers in groups.values())


@dataclass(frozen=True)
class Architecture:
    """Shapes the runtime needs. `context_length` in tokens; `layers_per_block` KV slots at each of `loops` depths.

    `pasts` past inputs of each layer in the graph: the sequences one step can serve, at least `loops`. `windows`: how
    many tokens each layer attends to, by loop and layer, where any has such a limit. `short_context`: the context up to
    which the model rotates as it first learned, where it has other frequencies for longer ones (LongRoPE). `looped`:
    how the loops follow each other, where the model is a looped one of others.
    """

    family: str
    loops: int
    layers_per_block: int
    rank: int
    hidden_size: int
    attention_heads: int
    key_value_heads: int
    head_dim: int
    vocabulary: int
    context_length: int
    pasts: int
    kv_bits: int
    windows: Windows | None = None
    short_context: int | None = None
    looped: Looping | None = None

    @property
    def looping(self) -> Looping:
        """How the loops follow each other."""
        return self.looped or OWN_LOOPING

    @property
    def exits(self) -> tuple[int, ...]:
        """The depths whose logits may be read, in order; the last is full depth."""
        return self.looping.exits or tuple(range(1, self.loops + 1))

    @cached_property
    def kv_groups(self) -> tuple[tuple[int, ...], ...]:
        """The layers of the block that hold the same rows at every depth."""
        return kv_groups(self.windows or ((None,) * self.layers_per_block,) * self.loops)

    def window(self, depth: int, group: int) -> int | None:
        """Return how many tokens the layers of a KV group attend to at a depth, or None for all."""
        return self.windows[depth - 1][self.kv_groups[group][0]] if self.windows else None

    @property
    def kv_planes(self) -> dict[str, tuple[type[np.generic], int]]:
        """Planes of the cache by their name in the graph: the element type and the numbers of a row and head."""
        if self.kv_bits == 32:
            return {"key": (np.float32, self.head_dim), "value": (np.float32, self.head_dim)}
        whole, scale = (np.int8, self.head_dim), (np.float32, 1)
        return {"key": whole, "value": whole, "key_scale": scale, "value_scale": scale}

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one position at every depth."""
        return self.kv_bytes(1)

    def kv_bytes(self, tokens: int, rule: KVRule = EXACT) -> int:
        """Keys and values of so many tokens in every slot, as far as windows let them be kept."""
        row_bytes = sum(np.dtype(kind).itemsize * count for kind, count in self.kv_planes.values())
        rows = tokens * rule.slots(self.loops) * self.layers_per_block
        if self.windows is not None:
            bounds = [tokens if window is None else window + WINDOW_SPARE for row in self.windows for window in row]
            rows = sum(min(tokens, bound) for bound in bounds)
        return rows * self.key_value_heads * row_bytes

    @classmethod
    def read(cls, fields: Fields) -> Architecture:
        """
        Raises:
            BundleError: a field is missing, out of bounds, or does not go with another.
        """
        loops = fields.count("loops", 1, 64)
        read = cls(
            family=fields.text("family"),
            loops=loops,
            layers_per_block=fields.count("layers_per_block", 1, MOST_LAYERS),
            rank=fields.count("rank", 0, 1 << 16),
            hidden_size=fields.count("hidden_size", 1, 1 << 17),
            attention_heads=fields.count("attention_heads", 1, 1 << 12),
            key_value_heads=fields.count("key_value_heads", 1, 1 << 12),
            head_dim=fields.count("head_dim", 1, 1 << 12),
            vocabulary=fields.count("vocabulary", 1, 1 << 22),
            context_length=fields.count("context_length", 1, 1 << 24),
            pasts=fields.count("pasts", 1, 1 << 10),
            kv_bits=fields.count("kv_bits", 8, 32),
            windows=_windows(fields),
            short_context=None if fields.get("short_context") is None else fields.count("short_context", 1, 1 << 24),
            looped=None if fields.get("looped") is None else _looping(fields.table("looped"), loops),
        )
        sizes = [len(row) for row in read.windows or ()]
        if read.windows is not None and sizes != [read.layers_per_block] * read.loops:
            raise fields.fail("windows", f"must be {read.loops} lists of {read.layers_per_block} entries, or null")
        if read.kv_bits not in KV_BITS:
            raise fields.fail("kv_bits", f"{read.kv_bits} is not known; known: {', '.join(map(str, KV_BITS))}")
        if read.pasts < read.loops:
            raise fields.fail("pasts", f"{read.pasts} is less than the {read.loops} loops")
        if read.attention_heads % read.key_value_heads:
            raise fields.fail("key_value_heads", f"{read.key_value_heads} does not divide the attention heads")
        return read


def _windows(fields: Fields) -> Windows | None:
    value = fields.get("windows")
    if value is None:
        return None
    rows: list[Any] = value if isinstance(value, list) else [None]
    entries = [entry for row in rows for entry in (row if isinstance(row, list) else [0])]
    if not all(entry is None or (type(entry) is int and entry > 0) for entry in entries):
        raise fields.fail("windows", "must be a list for each loop of a window or null for each layer, or null")
    return tuple(tuple(row) for row in rows)


def _looping(fields: Fields, loops: int) -> Looping:
    gate, exits = fields.text("gate"), fields.get("exits")
    if gate not in GATE_KINDS:
        raise fields.fail("gate", f"{shown(gate)} is not known; known: {', '.join(GATE_KINDS)}")
    whole = isinstance(exits, list) and all(type(depth) is int and depth > 0 for depth in exits)
    if exits is not None and not (whole and exits == sorted(set(exits)) and exits[-1:] == [loops]):
        raise fields.fail("exits", f"must be ascending depths that end with {loops}, or null")
    depths = None if exits is None else tuple(exits)
    return Looping(fields.flag("norm_inside"), gate, depths, fields.count("draft_depth", 1, loops))
