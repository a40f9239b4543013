"""Emits the block: the loop body's layers, for one spec, writing each layer's weights as it goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.exporters.graph import FLOAT, INT8, MICROSOFT, Builder
from rrt_edge.exporters.linears import Adapted, Bits, DepthMasks, Linears, fused, lora_columns, wide_a
from rrt_edge.exporters.spec import BlockSpec

Float = NDArray[np.float32]


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer of the block."""

    norms: tuple[Float, Float]  # before attention, before the MLP
    q: Adapted
    k: Adapted
    v: Adapted
    o: Adapted
    gate: Adapted
    up: Adapted
    down: Adapted


@dataclass(frozen=True)
class Surroundings:
    """Values from around the loop and of this iteration that the layers read, by name."""

    choices: Sequence[str]  # bool, one for each depth: one call is at it; none holds in the step form
    masks: DepthMasks
    cos: str  # [B * N, head_dim / 2]; N: S, and before them the rows that propagate
    sin: str
    row_index: str  # int64 [B, S], into cos and sin
    mask: str  # float [B, 1, group * S, P + N]: the past of this depth, and the new rows causally
    past_split: str  # int64 [2]: P, N
    slots: Slots
    propagated: Propagated | None


@dataclass(frozen=True)
class Propagated:
    """What the keys and values of rows that have left, and of those behind them, are computed from."""

    states: str  # [B, F, H]
    masks: DepthMasks  # of all N = F + S rows
    row_index: str  # int64 [B, N]


@dataclass(frozen=True)
class Slots:
    """What the step form's attention reads, by name; the lists have an entry for each slot of n rows."""

    rows: str  # int64 [slots]: n
    key_rows: str  # the same; where rows propagate [2 * slots]: f of each, n of each
    masks: Sequence[str]  # float [1, 1, group * n, P + f + n]
    past_splits: Sequence[str]  # int64 [2]: P, f + n


def choose_one(
    graph: Builder, choices: Sequence[str], outputs: int, emit: Callable[[Builder, int], Sequence[str]]
) -> list[str]:
    """Emit `emit(builder, n)` for n from 1 on, and let an If take the first whose choice holds, or the one behind them.

    No input of the others is touched.
    """

    def choose(here: Builder, first: int) -> Sequence[str]:
        if first > len(choices):
            return emit(here, first)
        this, others = Builder(here), Builder(here)
        then_names, else_names = emit(this, first), choose(others, first + 1)
        branches = {
            "then_branch": this.branch(then_names, f"choice_{first}"),
            "else_branch": others.branch(else_names, f"choice_above_{first}"),
        }
        return here.ops("If", outputs, choices[first - 1], **branches)

    return list(choose(graph, 1))


class BlockEmitter:
    """Emits the layers of the block into the loop body."""

    def __init__(self, spec: BlockSpec, bits: Bits, linears: Linears) -> None:
        self.spec, self.bits, self.linears = spec, bits, linears

    def norm(self, name: str, weight: Float) -> str:
        return self.linears.weights.add(name, weight.astype(np.float32), "norms")

    def skip_norm(self, graph: Builder, residual: str, update: str, weight: str) -> tuple[str, str]:
        """(norm of the sum, the sum) of the residual stream and an update to it."""
        epsilon = self.spec.norm_epsilon
        normed, _, _, total = graph.ops(
            "SkipSimplifiedLayerNormalization", 4, residual, update, weight, domain=MICROSOFT, epsilon=epsilon
        )
        graph.nodes[-1].output[1:3] = ["", ""]  # statistics nobody reads
        return normed, total

    def layer(
        self, graph: Builder, index: int, weights: LayerWeights, normed: str, residual: str, around: Surroundings
    ) -> tuple[str, str, list[str]]:
        """One layer. Returns (MLP output, residual it is added to, new rows of each plane [B, KV, N, width])."""
        name = f"block.{index}"
        q, k, v = self._queries_keys_values(graph, name, weights, normed, around)
        planes = [k, v]
        if self.spec.kv_bits == 8:
            planes, k, v = self._quantized(graph, k, v)
        attended = self._attention(graph, name, weights, q, k, v, around)
        second = self.norm(f"{name}.norm2", weights.norms[1])
        normed, residual = self.skip_norm(graph, residual, attended, second)
        return self._mlp(graph, name, weights, normed, around), residual, planes

    def _mlp(self, graph: Builder, name: str, weights: LayerWeights, x: str, around: Surroundings) -> str:
        if weights.gate.a is None:
            both = self._linear(graph, f"{name}.gate_up", [weights.gate, weights.up], x, around.masks)
            sizes = [len(weights.gate.weight), len(weights.up.weight)]
            gate, up = graph.ops("Split", 2, both, graph.constant(sizes), axis=-1)
        else:
            gate, up = self._linears_apart(graph, name, ("gate", "up"), (weights.gate, weights.up), x, around.masks)
        active = graph.op("QuickGelu", gate, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x), that is SiLU
        return self._linear(graph, f"{name}.down", [weights.down], graph.op("Mul", active, up), around.masks)

    def _queries_keys_values(
        self, graph: Builder, name: str, weights: LayerWeights, x: str, around: Surroundings
    ) -> tuple[str, str, str]:
        """Queries [B, H, S, D], keys and values [B, KV, N, D], rotated; as one product where no rows propagate."""
        heads, kv_heads = self.spec.heads, self.spec.kv_heads

        def rotate(tensor: str, row_index: str) -> str:
            return graph.op("RotaryEmbedding", tensor, row_index, around.cos, around.sin, domain=MICROSOFT)

        def by_head(tensor: str, count: int) -> str:
            return graph.transpose(graph.reshape(tensor, 0, 0, count, self.spec.head_dim), 0, 2, 1, 3)

        if around.propagated is None:
            qkv = self._linear(graph, f"{name}.qkv", [weights.q, weights.k, weights.v], x, around.masks)
            every = by_head(qkv, heads + 2 * kv_heads)
            qk, v = graph.ops("Split", 2, every, graph.constant([heads + kv_heads, kv_heads]), axis=1)
            q, k = graph.ops("Split", 2, rotate(qk, around.row_index), graph.constant([heads, kv_heads]), axis=1)
            return q, k, v
        left, norm = around.propagated, self.norm(f"{name}.norm1", weights.norms[0])
        states = graph.op("RMSNormalization", left.states, norm, epsilon=self.spec.norm_epsilon, axis=-1)
        q = by_head(self._linear(graph, f"{name}.q", [weights.q], x, around.masks), heads)
        both = graph.op("Concat", states, x, axis=1)
        kv = by_head(self._linear(graph, f"{name}.kv", [weights.k, weights.v], both, left.masks), 2 * kv_heads)
        k, v = graph.ops("Split", 2, kv, graph.constant([kv_heads, kv_heads]), axis=1)
        return rotate(q, around.row_index), rotate(k, left.row_index), v

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
        self, graph: Builder, name: str, weights: LayerWeights, q: str, keys: str, values: str, around: Surroundings
    ) -> str:
        """The attention's output [B, S, hidden]."""
        index = int(name.rsplit(".", 1)[1])

        def attend(branch: Builder, choice: int) -> list[str]:
            if choice > self.spec.loops:
                return [self._attend_slots(branch, q, keys, values, index, around.slots)]
            return [self._attend(branch, q, keys, values, f"{choice}.{index}", around.mask, around.past_split)]

        (mixed,) = choose_one(graph, around.choices, 1, attend)  # [B, H, S, D]
        mixed = graph.reshape(graph.transpose(mixed, 0, 2, 1, 3), 0, 0, self.spec.heads * self.spec.head_dim)
        return self._linear(graph, f"{name}.o", [weights.o], mixed, around.masks)

    def _attend_slots(self, graph: Builder, q: str, keys: str, values: str, layer: int, slots: Slots) -> str:
        """The rows of each slot over a past of their own: [1, H, S, D]."""
        queries = graph.ops("Split", self.spec.pasts, q, slots.rows, axis=2)
        new_keys, new_values = self._of_slots(graph, keys, slots), self._of_slots(graph, values, slots)
        parts = zip(queries, new_keys, new_values, slots.masks, slots.past_splits, strict=True)
        mixed = [
            self._attend(graph, own, key, value, f"{slot}.{layer}", mask, split)
            for slot, (own, key, value, mask, split) in enumerate(parts, 1)
        ]
        return graph.op("Concat", *mixed, axis=2)

    def _of_slots(self, graph: Builder, rows: str, slots: Slots) -> list[str]:
        """New keys or values [1, KV, N, D] of each slot; those of rows that propagate come before the others."""
        count = self.spec.pasts
        if not self.spec.propagates:
            return graph.ops("Split", count, rows, slots.key_rows, axis=2)
        pieces = graph.ops("Split", 2 * count, rows, slots.key_rows, axis=2)
        return [graph.op("Concat", pieces[slot], pieces[count + slot], axis=2) for slot in range(count)]

    def _attend(self, graph: Builder, q: str, keys: str, values: str, past: str, mask: str, past_split: str) -> str:
        """Grouped attention over one past, read in place, and the new rows: [B, H, S, D].

        The query heads of a KV head stand below each other as rows: one product serves the group.
        """
        scale = self.spec.head_dim**-0.5
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
        scores = graph.op("Add", graph.op("Concat", scaled(old, "key"), new, axis=-1), mask)
        shares = graph.op("Softmax", scores, axis=-1)
        old, new = graph.ops("Split", 2, shares, past_split, axis=-1)
        old, new = graph.op("MatMul", scaled(old, "value"), past_value), graph.op("MatMul", new, values)
        mixed = graph.op("Add", old, new)
        return graph.reshape(mixed, 0, self.spec.heads, -1, self.spec.head_dim)

    def _linear(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, masks: DepthMasks) -> str:
        """Several linears of one input as one product; outputs side by side."""
        if linears[0].a is not None:
            x = graph.op("Concat", x, self._adapted(graph, name, linears, x, masks), axis=-1)
        return self._product(graph, name, linears, x)

    def _linears_apart(
        self, graph: Builder, name: str, labels: Sequence[str], linears: Sequence[Adapted], x: str, masks: DepthMasks
    ) -> list[str]:
        """Several linears of one input, a product each: wide ones, whose fused adapters would be mostly zeros."""
        inputs = [x] * len(linears)
        if linears[0].a is not None:
            adapted = self._adapted(graph, f"{name}.{'_'.join(labels)}", linears, x, masks)
            ranks = [linear.a.shape[1] for linear in linears if linear.a is not None]
            sizes = graph.constant([lora_columns(rank, self.spec.loops) for rank in ranks])
            parts = graph.ops("Split", len(linears), adapted, sizes, axis=-1)
            inputs = [graph.op("Concat", x, part, axis=-1) for part in parts]
        return [
            self._product(graph, f"{name}.{label}", [linear], columns)
            for label, linear, columns in zip(labels, linears, inputs, strict=True)
        ]

    def _adapted(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, masks: DepthMasks) -> str:
        """`mask * A x` of all depths, [B, S, sum of lora_columns]."""
        matrix = wide_a(linears)
        self.linears.write(f"{name}.lora_a", matrix, self.bits.lora, "lora")
        product = Linears.matmul(graph, x, f"{name}.lora_a", matrix.shape[1], matrix.shape[0], self.bits.lora)
        return graph.op("Mul", product, masks.mask(linears))

    def _product(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str) -> str:
        matrix = fused(linears)
        self.linears.write(name, matrix, self.bits.block, "block")
        y = Linears.matmul(graph, x, name, matrix.shape[1], matrix.shape[0], self.bits.block)
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if not biases:
            return y
        bias = self.linears.weights.add(f"{name}.bias", np.concatenate(biases).astype(np.float32), "block")
        return graph.op("Add", y, bias)
