"""Emits the block's layers for one spec and writes their weights as it goes; attention is left to the graph form."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from rrt_edge.exporters.builder import MICROSOFT, Builder
from rrt_edge.exporters.linears import Linears, RowDepths
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.quantisation.plan import Bits
from rrt_edge.quantisation.wide import (
    Adapted,
    fused,
    fused_format,
    fused_shape,
    has_adapters,
    lora_columns,
    wide_a,
)

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
class Residual:
    """The residual stream by name, and what is still to be added to it, where anything is."""

    residual: str
    update: str = ""


class Around(Protocol):
    """The values that a graph form has around its layers."""

    @property
    def depths(self) -> RowDepths: ...


Surroundings = TypeVar("Surroundings", bound=Around)


class BlockEmitter(ABC, Generic[Surroundings]):
    """Emits the layers of the block into a graph, all but attention itself."""

    rms_norm = "RMSNormalization"
    prefix = "block"  # of the names of weights, in front of the layer's number

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
        first = self._stored(name, norm.weight) if tied else graph.constant(np.ones(size), self.linears.dtype)
        if self.spec.layer_norm:
            assert norm.bias is not None
            second = (
                self._stored(f"{name}.bias", norm.bias) if tied else graph.constant(np.zeros(size), self.linears.dtype)
            )
            normed = graph.op("LayerNormalization", x, first, second, epsilon=epsilon, axis=-1)
        else:
            normed = graph.op(self.rms_norm, x, first, epsilon=epsilon, axis=-1)
        if tied:
            return normed
        assert depths is not None
        shape = (0, 0, 1, size) if by_head else (0, 0, size)
        normed = graph.op("Mul", normed, graph.reshape(depths.pick(self._stored(name, norm.weight)), *shape))
        if norm.bias is not None:
            normed = graph.op("Add", normed, depths.pick(self._stored(f"{name}.bias", norm.bias)))
        return normed

    def norm_of(self, graph: Builder, stream: Residual, name: str, norm: Norm, depths: RowDepths) -> tuple[str, str]:
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
    def total(graph: Builder, stream: Residual) -> str:
        return graph.op("Add", stream.residual, stream.update) if stream.update else stream.residual

    def layer(
        self, graph: Builder, index: int, weights: LayerWeights, stream: Residual, around: Surroundings
    ) -> tuple[Residual, list[str]]:
        """One layer. Returns (the stream behind it, each plane of the cache: new rows, or what holds them)."""
        name, norms = f"{self.prefix}.{index}", weights.norms

        def before(role: str, stream: Residual) -> tuple[str, str]:
            if role not in norms:
                total = self.total(graph, stream)
                return total, total
            return self.norm_of(graph, stream, f"{name}.{role}", norms[role], around.depths)

        def after(role: str, update: str) -> str:
            if role not in norms:
                return update
            return self.norm(graph, update, f"{name}.{role}", norms[role], around.depths)

        x, residual = before("before_attention", stream)
        attended, planes = self.attention(graph, index, weights, x, around)
        attended = after("after_attention", attended)
        if self.spec.parallel:
            x, _ = before("before_mlp", Residual(residual))
            update = after("after_mlp", self._mlp(graph, name, weights, x, around.depths))
            return Residual(residual, graph.op("Add", attended, update)), planes
        x, residual = before("before_mlp", Residual(residual, attended))
        return Residual(residual, after("after_mlp", self._mlp(graph, name, weights, x, around.depths))), planes

    @abstractmethod
    def attention(
        self, graph: Builder, index: int, weights: LayerWeights, x: str, around: Surroundings
    ) -> tuple[str, list[str]]:
        """(what attention adds [B, S, hidden], each plane of the cache as `layer` returns it)."""

    def _stored(self, name: str, array: Float) -> str:
        """A norm's weight or bias."""
        return self.linears.tensor(self.linears.weights.add(name, array.astype(np.float32), "norms"))

    def _mlp(self, graph: Builder, name: str, weights: LayerWeights, x: str, depths: RowDepths) -> str:
        if weights.gate is None:
            active = self._active(graph, self.linear(graph, f"{name}.up", [weights.up], x, depths))
        else:
            pair = (weights.gate, weights.up)
            if has_adapters(pair):
                labels = (f"{name}.gate", f"{name}.up")
                gate, up = self._apart(graph, f"{name}.gate_up", labels, [[linear] for linear in pair], x, depths)
            else:
                both = self.linear(graph, f"{name}.gate_up", pair, x, depths)
                sizes = [len(linear.weight) for linear in pair]
                gate, up = graph.ops("Split", 2, both, graph.constant(sizes), axis=-1)
            active = graph.op("Mul", self._active(graph, gate), up)
        return self.linear(graph, f"{name}.down", [weights.down], active, depths)

    def _active(self, graph: Builder, x: str) -> str:
        kind = self.spec.activation
        if kind == "silu":
            return graph.op("QuickGelu", x, domain=MICROSOFT, alpha=1.0)  # x * sigmoid(x)
        if kind == "relu":
            return graph.op("Relu", x)
        return graph.op("Gelu", x, approximate="tanh" if kind == "gelu_tanh" else "none")

    def queries_keys_normed(
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

    def linear(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, depths: RowDepths) -> str:
        """Several linears of one input as one product, or one for each run of those with the same bits; outputs side by
        side."""
        runs = [list(run) for _, run in groupby(linears, key=lambda linear: linear.bits)]
        if len(runs) > 1:
            labels = [f"{name}.{number}" for number in range(len(runs))]
            return graph.op("Concat", *self._apart(graph, name, labels, runs, x, depths), axis=-1)
        columns = x
        if has_adapters(linears):
            columns = graph.op("Concat", x, self._adapted(graph, name, linears, x, depths), axis=-1)
        return self._product(graph, name, linears, columns, depths)

    def _apart(
        self,
        graph: Builder,
        name: str,
        labels: Sequence[str],
        runs: Sequence[Sequence[Adapted]],
        x: str,
        depths: RowDepths,
    ) -> list[str]:
        """Runs of linears of one input, a product each; of wide ones, adapters would be mostly zeros in one."""
        adapted = {index: run for index, run in enumerate(runs) if has_adapters(run)}
        columns = [x] * len(runs)
        if adapted:
            wide = self._adapted(graph, name, [linear for run in runs for linear in run], x, depths)
            sizes = graph.constant([self._wide_columns(run) for run in adapted.values()])
            for index, part in zip(adapted, graph.ops("Split", len(adapted), wide, sizes, axis=-1), strict=True):
                columns[index] = graph.op("Concat", x, part, axis=-1)
        return [
            self._product(graph, label, run, entered, depths)
            for label, run, entered in zip(labels, runs, columns, strict=True)
        ]

    def _wide_columns(self, linears: Sequence[Adapted]) -> int:
        return sum(lora_columns(linear.a.shape[1], self.spec.loops) for linear in linears if linear.a is not None)

    def _adapted(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, depths: RowDepths) -> str:
        """`mask * A x` of all depths, [B, S, sum of lora_columns]."""
        columns, inputs = self._wide_columns(linears), linears[0].weight.shape[1]
        stored = self.bits.format(self.bits.lora, inputs)
        self.linears.write(f"{name}.lora_a", lambda: wide_a(linears), (columns, inputs), stored, "lora")
        product = self.linears.matmul(graph, x, f"{name}.lora_a", inputs, columns, stored)
        return graph.op("Mul", product, depths.mask(linears))

    def _product(self, graph: Builder, name: str, linears: Sequence[Adapted], x: str, depths: RowDepths) -> str:
        outputs, inputs = fused_shape(linears, self.spec.loops)
        stored = fused_format(linears, self.bits.format(self.bits.block, linears[0].weight.shape[1]))
        self.linears.write(name, lambda: fused(linears), (outputs, inputs), stored, "block")
        y = self.linears.matmul(graph, x, name, inputs, outputs, stored)
        if all(linear.bias is None for linear in linears):
            return y
        loops = max(len(linear.bias) if linear.bias is not None and linear.bias.ndim == 2 else 0 for linear in linears)
        shape = (loops,) if loops else ()
        none = [np.zeros((*shape, len(linear.weight)), np.float32) for linear in linears]
        biases = [zeros if linear.bias is None else linear.bias for linear, zeros in zip(linears, none, strict=True)]
        bias = self.linears.weights.add(f"{name}.bias", np.concatenate(biases, axis=-1).astype(np.float32), "block")
        bias = self.linears.tensor(bias)
        return graph.op("Add", y, depths.pick(bias) if loops else bias)
