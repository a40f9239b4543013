"""Emits the block: the loop body's layers, for one spec, writing each layer's weights as it goes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.exporters.graph import FLOAT, INT8, MICROSOFT, Builder, choose_one
from rrt_edge.exporters.linears import Adapted, Bits, Linears, RowDepths, fused, has_adapters, lora_columns, wide_a
from rrt_edge.exporters.masks import Seen, Slots
from rrt_edge.exporters.positions import Turns
from rrt_edge.exporters.spec import BlockSpec

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Norm:
    """`weight` [n], or [K, n] where each depth has its own; `bias` the same, or None (RMSNorm)."""

    weight: Float
    bias: Float | None = None


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer of the block.

    `norms` by where they stand: `before_attention`, `after_attention`, `before_mlp`, `after_mlp`, `q`, `k`. `gate` is
    None where the MLP is not gated.
    """

    norms: Mapping[str, Norm]
    q: Adapted
    k: Adapted
    v: Adapted
    o: Adapted
    gate: Adapted | None
    up: Adapted
    down: Adapted


@dataclass(frozen=True)
class Stream:
    """The residual stream by name, and what is still to be added to it, where anything is."""

    residual: str
    update: str = ""


@dataclass(frozen=True)
class Surroundings:
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
    left: RowDepths  # of the F


class BlockEmitter:
    """Emits the layers of the block into the loop body."""

    def __init__(self, spec: BlockSpec, bits: Bits, linears: Linears) -> None:
        self.spec, self.bits, self.linears = spec, bits, linears

    def norm(
        self, graph: Builder, x: str, name: str, norm: Norm, depths: RowDepths | None = None, by_head: bool = False
    ) -> str:
        """`x` normed along its last axis: [B, N, n], or [B, N, heads, n] `by_head`.

        `depths` of its rows, where each depth may have a norm of its own.
        """
        epsilon, tied = self.spec.norm_epsilon, norm.weight.ndim == 1
        size = norm.weight.shape[-1]
        first = self._stored(name, norm.weight) if tied else graph.constant(np.ones(size), np.float32)
        if self.spec.layer_norm:
            assert norm.bias is not None
            second = self._stored(f"{name}.bias", norm.bias) if tied else graph.constant(np.zeros(size), np.float32)
            normed = graph.op("LayerNormalization", x, first, second, epsilon=epsilon, axis=-1)
        else:
            normed = graph.op("RMSNormalization", x, first, epsilon=epsilon, axis=-1)
        if tied:
            return normed
        assert depths is not None
        shape = (0, 0, 1, size) if by_head else (0, 0, size)
        normed = graph.op("Mul", normed, graph.reshape(depths.pick(self._stored(name, norm.weight)), *shape))
        if norm.bias is not None:
            normed = graph.op("Add", normed, depths.pick(self._stored(f"{name}.bias", norm.bias)))
        return normed

    def norm_of(self, graph: Builder, stream: Stream, name: str, norm: Norm, depths: RowDepths) -> tuple[str, str]:
        """(norm of the stream, the stream)."""
        if not stream.update:
            return self.norm(graph, stream.residual, name, norm, depths), stream.residual
        if norm.weight.ndim > 1:
            total = self.total(graph, stream)
            return self.norm(graph, total, name, norm, depths), total
        weights = [self._stored(name, norm.weight)]
        kind = "SkipSimplifiedLayerNormalization"
        if norm.bias is not None:
            kind = "SkipLayerNormalization"
            weights.append(self._stored(f"{name}.bias", norm.bias))
        tensors, epsilon = (stream.residual, stream.update, *weights), self.spec.norm_epsilon
        normed, _, _, total = graph.ops(kind, 4, *tensors, domain=MICROSOFT, epsilon=epsilon)
        graph.nodes[-1].output[1:3] = ["", ""]  # statistics nobody reads
        return normed, total

    @staticmethod
    def total(graph: Builder, stream: Stream) -> str:
        return graph.op("Add", stream.residual, stream.update) if stream.update else stream.residual

    def layer(
        self, graph: Builder, index: int, weights: LayerWeights, stream: Stream, around: Surroundings
    ) -> tuple[Stream, list[str]]:
        """One layer. Returns (the stream behind it, new rows of each plane [B, KV, N, width])."""
        name, norms = f"block.{index}", weights.norms

        def before(role: str, stream: Stream) -> tuple[str, str]:
            if role not in norms:
                total = self.total(graph, stream)
                return total, total
            return self.norm_of(graph, stream, f"{name}.{role}", norms[role], around.depths)

        def after(role: str, update: str) -> str:
            if role not in norms:
                return update
            return self.norm(graph, update, f"{name}.{role}", norms[role], around.depths)

        x, residual = before("before_attention", stream)
        q, k, v = self._queries_keys_values(graph, name, weights, x, around, index)
        planes = [k, v]
        if self.spec.kv_bits == 8:
            planes, k, v = self._quantized(graph, k, v)
        attended = after("after_attention", self._attention(graph, name, weights, q, k, v, around, index))
        if self.spec.parallel:
            x, _ = before("before_mlp", Stream(residual))
            update = after("after_mlp", self._mlp(graph, name, weights, x, around.depths))
            return Stream(residual, graph.op("Add", attended, update)), planes
        x, residual = before("before_mlp", Stream(residual, attended))
        return Stream(residual, after("after_mlp", self._mlp(graph, name, weights, x, around.depths))), planes

    def _stored(self, name: str, array: Float) -> str:
        """A norm's weight or bias in the weight file, whoever asks for it first."""
        return self.linears.weights.once(name, array.astype(np.float32), "norms")

    def _mlp(self, graph: Builder, name: str, weights: LayerWeights, x: str, depths: RowDepths) -> str:
        if weights.gate is None:
            active = self._active(graph, self._linear(graph, f"{name}.up", [weights.up], x, depths))
        else:
            pair = (weights.gate, weights.up)
            if has_adapters(pair):
                gate, up = self._linears_apart(graph, name, ("gate", "up"), pair, x, depths)
            else:
                both = self._linear(graph, f"{name}.gate_up", pair, x, depths)
                sizes = [len(linear.weight) for linear in pair]
                gate, up = graph.ops("Split", 2, both, graph.constant(sizes), axis=-1)
            active = graph.op("Mul", self._active(graph, gate), up)
        return self._linear(graph, f"{name}.down", [weights.down], active, depths)

    def _active(self, graph: Builder, x: str) -> str:
        kind = self.spec.activation
        if kind == "silu":
            return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
        if kind == "relu":
            return graph.op("Relu", x)
        return graph.op("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def _queries_keys_values(
        self, graph: Builder, name: str, weights: LayerWeights, x: str, around: Surroundings, index: int
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
            qkv = self._linear(graph, f"{name}.qkv", [weights.q, weights.k, weights.v], x, around.depths)
            qkv = self._normed(graph, name, weights, qkv, ("q", "k", "v"), around.depths)
            every = by_head(qkv, heads + 2 * kv_heads)
            qk, v = graph.ops("Split", 2, every, graph.constant([heads + kv_heads, kv_heads]), axis=1)
            qk = rotate(qk, own_turn, heads + kv_heads)
            q, k = graph.ops("Split", 2, qk, graph.constant([heads, kv_heads]), axis=1)
            return q, k, v
        states, every_row = around.propagated.states, around.propagated.depths
        if "before_attention" in weights.norms:
            role = "before_attention"
            states = self.norm(graph, states, f"{name}.{role}", weights.norms[role], around.propagated.left)
        q = self._linear(graph, f"{name}.q", [weights.q], x, around.depths)
        q = by_head(self._normed(graph, name, weights, q, ("q",), around.depths), heads)
        both = graph.op("Concat", states, x, axis=1)
        kv = self._linear(graph, f"{name}.kv", [weights.k, weights.v], both, every_row)
        kv = by_head(self._normed(graph, name, weights, kv, ("k", "v"), every_row), 2 * kv_heads)
        k, v = graph.ops("Split", 2, kv, graph.constant([kv_heads, kv_heads]), axis=1)
        return rotate(q, own_turn, heads), rotate(k, key_turn, kv_heads), v

    def _normed(
        self, graph: Builder, name: str, weights: LayerWeights, x: str, parts: Sequence[str], depths: RowDepths
    ) -> str:
        """Queries, keys and values side by side, [B, N, n]: queries and keys normed where the family does that."""
        if "q" not in weights.norms:
            return x
        size = self.spec.head_dim
        counts = [self.spec.heads if part == "q" else self.spec.kv_heads for part in parts]
        pieces = [x]
        if len(parts) > 1:
            pieces = graph.ops("Split", len(parts), x, graph.constant([count * size for count in counts]), axis=-1)
        normed = []
        for part, count, piece in zip(parts, counts, pieces, strict=True):
            if part == "v":
                normed.append(piece)
                continue
            norm, label = weights.norms[part], f"{name}.{part}_norm"
            if self.spec.norms_by_head:
                heads = self.norm(graph, graph.reshape(piece, 0, 0, count, size), label, norm, depths, by_head=True)
                normed.append(graph.reshape(heads, 0, 0, count * size))
            else:
                normed.append(self.norm(graph, piece, label, norm, depths))
        return graph.op("Concat", *normed, axis=-1) if len(normed) > 1 else normed[0]

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
        around: Surroundings,
        index: int,
    ) -> str:
        """The attention's output [B, S, hidden]."""
        group = self.spec.kv_group(index)

        def attend(branch: Builder, choice: int) -> list[str]:
            if choice > self.spec.loops:
                return [self._attend_slots(branch, q, keys, values, index, around.slots)]
            return [self._attend(branch, q, keys, values, f"{choice}.{index}", around.seen[group])]

        (mixed,) = choose_one(graph, around.choices, 1, attend)  # [B, H, S, D]
        mixed = graph.reshape(graph.transpose(mixed, 0, 2, 1, 3), 0, 0, self.spec.heads * self.spec.head_dim)
        return self._linear(graph, f"{name}.o", [weights.o], mixed, around.depths)

    def _attend_slots(self, graph: Builder, q: str, keys: str, values: str, layer: int, slots: Slots) -> str:
        """The rows of each slot over a past of their own: [1, H, S, D]."""
        queries = graph.ops("Split", self.spec.pasts, q, slots.rows, axis=2)
        new_keys, new_values = self._of_slots(graph, keys, slots), self._of_slots(graph, values, slots)
        seen = slots.seen[self.spec.kv_group(layer)]
        parts = zip(queries, new_keys, new_values, seen, strict=True)
        mixed = [
            self._attend(graph, own, key, value, f"{slot}.{layer}", one)
            for slot, (own, key, value, one) in enumerate(parts, 1)
        ]
        return graph.op("Concat", *mixed, axis=2)

    def _of_slots(self, graph: Builder, rows: str, slots: Slots) -> list[str]:
        """New keys or values [1, KV, N, D] of each slot; those of rows that propagate come before the others."""
        count = self.spec.pasts
        if not self.spec.propagates:
            return graph.ops("Split", count, rows, slots.key_rows, axis=2)
        pieces = graph.ops("Split", 2 * count, rows, slots.key_rows, axis=2)
        return [graph.op("Concat", pieces[slot], pieces[count + slot], axis=2) for slot in range(count)]

    def _attend(self, graph: Builder, q: str, keys: str, values: str, past: str, seen: Seen) -> str:
        """Grouped attention over one past, read in place, and the new rows: [B, H, S, D].

        The query heads of a KV head stand below each other as rows: one product serves the group.
        """
        cap = self.spec.attention_softcap
        scale = self.spec.attention_scale / (cap or 1)
        whole = self.spec.kv_bits == 8
        past_key, past_value = f"past_key.{past}", f"past_value.{past}"
        if whole:
            past_key, past_value = (graph.op("Cast", plane, to=FLOAT) for plane in (past_key, past_value))

        def scaled(columns: str, plane: str) -> str:
            """By the scale of each past row: fewer numbers than its keys or values where few rows are new."""
            if not whole:
                return columns
            return graph.op("Mul", columns, graph.reshape(f"past_{plane}_scale.{past}", 0, 0, 1, -1))

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

    def _linear(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, depths: RowDepths) -> str:
        """Several linears of one input as one product; outputs side by side."""
        columns = x
        if has_adapters(linears):
            columns = graph.op("Concat", x, self._adapted(graph, name, linears, x, depths), axis=-1)
        return self._product(graph, name, linears, columns, depths)

    def _linears_apart(
        self, graph: Builder, name: str, labels: Sequence[str], linears: Sequence[Adapted], x: str, depths: RowDepths
    ) -> list[str]:
        """Several adapted linears of one input, a product each: fused, wide ones' adapters would be mostly zeros."""
        adapted = self._adapted(graph, f"{name}.{'_'.join(labels)}", linears, x, depths)
        ranks = [linear.a.shape[1] for linear in linears if linear.a is not None]
        sizes = graph.constant([lora_columns(rank, self.spec.loops) for rank in ranks])
        parts = graph.ops("Split", len(linears), adapted, sizes, axis=-1)
        return [
            self._product(graph, f"{name}.{label}", [linear], graph.op("Concat", x, part, axis=-1), depths)
            for label, linear, part in zip(labels, linears, parts, strict=True)
        ]

    def _adapted(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, depths: RowDepths) -> str:
        """`mask * A x` of all depths, [B, S, sum of lora_columns]."""
        matrix = wide_a(linears)
        self.linears.write(f"{name}.lora_a", matrix, self.bits.lora, "lora")
        product = Linears.matmul(graph, x, f"{name}.lora_a", matrix.shape[1], matrix.shape[0], self.bits.lora)
        return graph.op("Mul", product, depths.mask(linears))

    def _product(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, depths: RowDepths) -> str:
        matrix = fused(linears)
        self.linears.write(name, matrix, self.bits.block, "block")
        y = Linears.matmul(graph, x, name, matrix.shape[1], matrix.shape[0], self.bits.block)
        if all(linear.bias is None for linear in linears):
            return y
        loops = max(len(linear.bias) if linear.bias is not None and linear.bias.ndim == 2 else 0 for linear in linears)
        shape = (loops,) if loops else ()
        none = [np.zeros((*shape, len(linear.weight)), np.float32) for linear in linears]
        biases = [zeros if linear.bias is None else linear.bias for linear, zeros in zip(linears, none, strict=True)]
        bias = self.linears.weights.add(f"{name}.bias", np.concatenate(biases, axis=-1).astype(np.float32), "block")
        return graph.op("Add", y, depths.pick(bias) if loops else bias)
