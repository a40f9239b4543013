"""Attention of the loop graph: every depth's past is a read-only input, new rows come out for the host to keep.

Shapes are written in these letters: B texts (one where several slots share the call), S rows that query, F rows that
have left and give keys and values only, N = F + S rows of new keys and values, P rows of a past; H query heads and KV
heads of keys and values, G = H / KV query heads that share one of them, D numbers a head.

A layer's attention goes so: queries [B, H, S, D], keys and values [B, KV, N, D] come from one product and are rotated.
In the one-call form all rows are at one depth, and a branch for each depth reads that depth's past. In the step form
the rows of each slot are cut out and attend to the slot's own past. Either way `_attend` lets G * S rows of each KV
head look at P old and N new keys, whose scores stand beside each other in one softmax.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rrt_edge.exporters.block import BlockEmitter, LayerWeights
from rrt_edge.exporters.builder import FLOAT, INT8, MICROSOFT, Builder, choose_one
from rrt_edge.exporters.linears import RowDepths
from rrt_edge.exporters.masks import Seen, Slots
from rrt_edge.exporters.rotary import Turns
from rrt_edge.runtime.bundle.contract import past_name


@dataclass(frozen=True)
class LoopSurroundings:
    """Values from around the loop and of this iteration that the layers read, by name."""

    choices: Sequence[str]  # bool, one for each depth: one call is at it; none holds in the step form
    depths: RowDepths
    cos: str  # [R * B * N, rotated / 2], of R rotary embeddings; N: S, and before them the rows that propagate
    sin: str
    seen: Sequence[Seen]  # by KV group
    slots: Slots
    propagated: Propagated | None
    turns: Turns  # of a layer: int64 [B, S] and [B, N], the rows' indices into cos and sin


@dataclass(frozen=True)
class Propagated:
    """What the keys and values of rows that have left, and of those behind them, are computed from."""

    states: str  # [B, F, H]
    depths: RowDepths  # of all N = F + S rows
    exited: RowDepths  # of the F


class LoopBlock(BlockEmitter[LoopSurroundings]):
    """Emits the layers of the block into the loop body."""

    def attention(
        self, graph: Builder, index: int, weights: LayerWeights, x: str, around: LoopSurroundings
    ) -> tuple[str, list[str]]:
        """(what attention adds [B, S, hidden], new rows of each plane [B, KV, N, width])."""
        name = f"{self.prefix}.{index}"
        q, k, v = self._queries_keys_values(graph, name, weights, x, around, index)
        planes = [k, v]
        if self.spec.kv_bits == 8:
            planes, k, v = self._quantized(graph, k, v)
        return self._attention(graph, name, weights, q, k, v, around, index), planes

    def _queries_keys_values(
        self, graph: Builder, name: str, weights: LayerWeights, x: str, around: LoopSurroundings, index: int
    ) -> tuple[str, str, str]:
        """Queries [B, H, S, D], keys and values [B, KV, N, D], rotated; as one product where no rows propagate."""
        heads, kv_heads, size = self.spec.heads, self.spec.kv_heads, self.spec.head_dim
        own_turn, key_turn = around.turns(index)

        def rotate(tensor: str, row_index: str, count: int) -> str:
            rotated = 2 * len(self.spec.rotaries[0].frequencies)
            partial = {} if rotated == size else {"rotary_embedding_dim": rotated, "num_heads": count}
            return graph.op("RotaryEmbedding", tensor, row_index, around.cos, around.sin, domain=MICROSOFT, **partial)

        def by_head(tensor: str, count: int) -> str:
            return graph.transpose(graph.reshape(tensor, 0, 0, count, size), 0, 2, 1, 3)

        if around.propagated is None:
            qkv = self.linear(graph, f"{name}.qkv", [weights.q, weights.k, weights.v], x, around.depths)
            qkv = self.queries_keys_normed(graph, name, weights, qkv, ("q", "k", "v"), around.depths)
            every = by_head(qkv, heads + 2 * kv_heads)
            qk, v = graph.ops("Split", 2, every, graph.constant([heads + kv_heads, kv_heads]), axis=1)
            qk = rotate(qk, own_turn, heads + kv_heads)
            q, k = graph.ops("Split", 2, qk, graph.constant([heads, kv_heads]), axis=1)
            return q, k, v
        states, every_row = around.propagated.states, around.propagated.depths
        if "before_attention" in weights.norms:
            role = "before_attention"
            states = self.norm(graph, states, f"{name}.{role}", weights.norms[role], around.propagated.exited)
        q = self.linear(graph, f"{name}.q", [weights.q], x, around.depths)
        q = by_head(self.queries_keys_normed(graph, name, weights, q, ("q",), around.depths), heads)
        both = graph.op("Concat", states, x, axis=1)
        kv = self.linear(graph, f"{name}.kv", [weights.k, weights.v], both, every_row)
        kv = by_head(self.queries_keys_normed(graph, name, weights, kv, ("k", "v"), every_row), 2 * kv_heads)
        k, v = graph.ops("Split", 2, kv, graph.constant([kv_heads, kv_heads]), axis=1)
        return rotate(q, own_turn, heads), rotate(k, key_turn, kv_heads), v

    def _quantized(self, graph: Builder, keys: str, values: str) -> tuple[list[str], str, str]:
        """(planes to keep, keys, values): integers and a scale for each row and head, and what they stand for.

        The new rows are read as they will be read later, so that no result depends on which call brought them.
        """
        heads = graph.constant([self.spec.kv_heads, self.spec.kv_heads])
        both = graph.op("Concat", keys, values, axis=1)
        largest = graph.op("ReduceMax", graph.op("Abs", both), graph.constant([-1]), keepdims=1)
        scale = graph.op("Mul", largest, graph.constant(1 / 127, np.float32))
        scale = graph.op("Max", scale, graph.constant(1e-12, np.float32))  # of a row of zeros
        whole = graph.op("Cast", graph.op("Round", graph.op("Div", both, scale)), to=INT8)
        planes = [*graph.ops("Split", 2, whole, heads, axis=1), *graph.ops("Split", 2, scale, heads, axis=1)]
        rounded = graph.op("Mul", graph.op("Cast", whole, to=FLOAT), scale)
        keys, values = graph.ops("Split", 2, rounded, heads, axis=1)
        return planes, keys, values

    def _attention(
        self,
        graph: Builder,
        name: str,
        weights: LayerWeights,
        q: str,
        keys: str,
        values: str,
        around: LoopSurroundings,
        index: int,
    ) -> str:
        """The attention's output [B, S, hidden]."""
        group = self.spec.kv_group(index)

        def attend(branch: Builder, choice: int) -> list[str]:
            if choice > self.spec.loops:
                return [self._attend_slots(branch, q, keys, values, index, around.slots)]
            return [self._attend(branch, q, keys, values, choice, index, around.seen[group])]

        (mixed,) = choose_one(graph, around.choices, 1, attend)  # [B, H, S, D]
        mixed = graph.reshape(graph.transpose(mixed, 0, 2, 1, 3), 0, 0, self.spec.heads * self.spec.head_dim)
        return self.linear(graph, f"{name}.o", [weights.o], mixed, around.depths)

    def _attend_slots(self, graph: Builder, q: str, keys: str, values: str, layer: int, slots: Slots) -> str:
        """The rows of each slot over a past of their own: [1, H, S, D]."""
        queries = graph.ops("Split", self.spec.pasts, q, slots.rows, axis=2)
        new_keys, new_values = self._of_slots(graph, keys, slots), self._of_slots(graph, values, slots)
        seen = slots.seen[self.spec.kv_group(layer)]
        parts = zip(queries, new_keys, new_values, seen, strict=True)
        mixed = [
            self._attend(graph, own, key, value, slot, layer, past)
            for slot, (own, key, value, past) in enumerate(parts, 1)
        ]
        return graph.op("Concat", *mixed, axis=2)

    def _of_slots(self, graph: Builder, rows: str, slots: Slots) -> list[str]:
        """New keys or values [1, KV, N, D] of each slot; those of rows that propagate come before the others."""
        count = self.spec.pasts
        if not self.spec.propagates:
            return graph.ops("Split", count, rows, slots.key_rows, axis=2)
        pieces = graph.ops("Split", 2 * count, rows, slots.key_rows, axis=2)
        return [graph.op("Concat", pieces[slot], pieces[count + slot], axis=2) for slot in range(count)]

    def _attend(self, graph: Builder, q: str, keys: str, values: str, past: int, layer: int, seen: Seen) -> str:
        """Grouped attention over one past, read in place, and the new rows: [B, H, S, D].

        The query heads of a KV head stand below each other as rows: one product serves the group. Old and new keys
        are never put into one tensor, for that would copy the past: their scores are, which are smaller.
        """
        cap = self.spec.attention_softcap
        scale = self.spec.attention_scale / (cap or 1)
        whole = self.spec.kv_bits == 8
        past_key, past_value = past_name("key", past, layer), past_name("value", past, layer)
        if whole:
            past_key, past_value = (graph.op("Cast", plane, to=FLOAT) for plane in (past_key, past_value))

        def scaled(columns: str, plane: str) -> str:
            """By the scale of each past row: fewer numbers than its keys or values where few rows are new."""
            if not whole:
                return columns
            return graph.op("Mul", columns, graph.reshape(past_name(f"{plane}_scale", past, layer), 0, 0, 1, -1))

        q = graph.reshape(q, 0, self.spec.kv_heads, -1, self.spec.head_dim)  # [B, KV, G * S, D]
        old = graph.op("FusedMatMul", q, past_key, domain=MICROSOFT, transB=1, alpha=scale)  # [B, KV, G * S, P]
        new = graph.op("FusedMatMul", q, keys, domain=MICROSOFT, transB=1, alpha=scale)  # [B, KV, G * S, N]
        scores = graph.op("Concat", scaled(old, "key"), new, axis=-1)
        if cap is not None:
            scores = graph.op("Mul", graph.op("Tanh", scores), graph.constant(cap, np.float32))
        shares = graph.op("Softmax", graph.op("Add", scores, seen.mask), axis=-1)
        old, new = graph.ops("Split", 2, shares, seen.past_split, axis=-1)
        old, new = graph.op("MatMul", scaled(old, "value"), past_value), graph.op("MatMul", new, values)
        mixed = graph.op("Add", old, new)
        return graph.reshape(mixed, 0, self.spec.heads, -1, self.spec.head_dim)
