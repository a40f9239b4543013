"""What stands around the block in every graph form: the embedding, the exit gate, the head."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rrt_edge.exporters.block import Norm
from rrt_edge.exporters.builder import FLOAT, MICROSOFT, Builder
from rrt_edge.exporters.linears import Linears, RowDepths
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.quantisation.blocks import Rows
from rrt_edge.quantisation.plan import Bits, Format, packs_embedding
from rrt_edge.quantisation.wide import Matrix

Float = NDArray[np.float32]
ReadOuter = Callable[[], Matrix | Rows]
ALWAYS = 1e4  # a gate bias whose sigmoid is 1: the last depth's token is full depth's


@dataclass(frozen=True)
class GateWeights:
    """`inner` [loops - 1, width, H], `inner_bias` and `outer` [loops - 1, width], `bias` [loops - 1]."""

    inner: Float
    inner_bias: Float
    outer: Float
    bias: Float


@dataclass(frozen=True)
class HazardWeights:
    """`weight` [1, H] and `bias` [1]."""

    weight: Float
    bias: Float


@dataclass(frozen=True)
class OuterWeights:
    """The weights around the block. `head` is None where it is the embedding, `gate` where there is none.

    What reads embedding and head is called when they are written: they are the largest matrices, and held no longer.
    """

    embedding: ReadOuter
    norm: Norm
    head: ReadOuter | None
    gate: GateWeights | HazardWeights | None


def embed(graph: Builder, linears: Linears, spec: BlockSpec, bits: Bits, embedding: ReadOuter, ids: str) -> str:
    """Emit the embedding of token ids [B, S]: [B, S, H]; in 4 or 8 bits it stays packed in memory."""
    rows = _rows_of(graph, linears, spec, bits, embedding, ids)
    if spec.embedding_scale == 1:
        return rows
    return graph.op("Mul", rows, graph.constant(spec.embedding_scale, linears.dtype))


def _rows_of(graph: Builder, linears: Linears, spec: BlockSpec, bits: Bits, embedding: ReadOuter, ids: str) -> str:
    shape, stored = (spec.vocabulary, spec.hidden), bits.format(bits.embedding, spec.hidden)
    if packs_embedding(spec.hidden, stored.bits):
        linears.write("embedding", embedding, shape, stored, "embedding")
        linears.weights.alias("embedding.rows", "embedding.packed", (spec.vocabulary, spec.hidden * stored.bits // 8))
        tensors = ("embedding.rows", ids, "embedding.scales")
        sizes = {"bits": stored.bits, "block_size": stored.block, "gather_axis": 0, "quantize_axis": 1}
        return graph.op("GatherBlockQuantized", *tensors, domain=MICROSOFT, **sizes)
    floats = Format(16 if stored.bits == 16 else 32)
    linears.write("embedding", embedding, shape, floats, "embedding", turned=False)
    rows = graph.op("Gather", "embedding", ids, axis=0)
    return graph.op("Cast", rows, to=FLOAT) if floats.bits == 16 else rows


def head(graph: Builder, linears: Linears, spec: BlockSpec, bits: Bits, outer: OuterWeights, normed: str) -> str:
    """Logits of normed rows [.., H]; a tied head of the embedding's precision shares its bytes in the file."""
    if spec.logits_scale != 1:
        normed = graph.op("Mul", normed, graph.constant(spec.logits_scale, linears.dtype))
    stored = bits.format(bits.head, spec.hidden)
    if outer.head is None and bits.head == bits.embedding and packs_embedding(spec.hidden, bits.head):
        name = "embedding"
    else:
        name, matrix = "head", outer.embedding if outer.head is None else outer.head
        linears.write(name, matrix, (spec.vocabulary, spec.hidden), stored, "head")
    logits = linears.matmul(graph, normed, name, spec.hidden, spec.vocabulary, stored)
    if spec.logits_softcap is None:
        return logits
    cap = graph.constant(spec.logits_softcap, linears.dtype)
    return graph.op("Mul", graph.op("Tanh", graph.op("Div", logits, cap)), cap)


def exit_gate(
    graph: Builder, linears: Linears, spec: BlockSpec, outer: OuterWeights, normed: str, depths: RowDepths
) -> str:
    """What the gate says of normed rows [B, S, H] in float32: float32 [B, S], 1 at the last depth.

    It is the probability that the token of a row's depth is full depth's; of a hazard that of leaving at this depth, of
    those that have come to it; and 0 where there is no gate.
    """
    gate, every_depth = outer.gate, range(1, spec.loops + 1)
    if isinstance(gate, GateWeights):
        scores = _gate_scores(graph, linears, spec, gate, normed)
    else:
        last = graph.constant([[[-ALWAYS] * (spec.loops - 1) + [ALWAYS]]], np.float32)
        scores = last if gate is None else graph.op("Max", _hazard_score(graph, linears, gate, normed), last)
    score = graph.op("Mul", scores, depths.equal(every_depth, FLOAT))
    return graph.op("Sigmoid", graph.op("ReduceSum", score, graph.constant([2]), keepdims=0))


def left_by_now(graph: Builder, stayed: str, hazard: str) -> tuple[str, str]:
    """(the probability of having stayed, of having left) behind a depth, from that of leaving there and `stayed`."""
    one = graph.constant(1.0, np.float32)
    stays = graph.op("Mul", stayed, graph.op("Sub", one, hazard))
    return stays, graph.op("Sub", one, stays)


def _hazard_score(graph: Builder, linears: Linears, gate: HazardWeights, normed: str) -> str:
    """Emit a hazard before the sigmoid: [B, S, 1]."""
    weight = linears.weights.add("exit_gate.weight", gate.weight.astype(np.float32).T, "gate")
    bias = linears.weights.add("exit_gate.bias", gate.bias.astype(np.float32), "gate")
    return graph.op("Add", graph.op("MatMul", normed, weight), bias)


def _gate_scores(graph: Builder, linears: Linears, spec: BlockSpec, gate: GateWeights, normed: str) -> str:
    """Emit the gates of all depths for every row, before the sigmoid: [B, S, loops]."""

    def kept(name: str, array: Float) -> str:
        return linears.weights.add(f"exit_gate.{name}", array.astype(np.float32), "gate")

    depths, width, hidden = gate.inner.shape
    outer = np.zeros((depths * width, spec.loops), np.float32)
    for depth, column in enumerate(gate.outer):
        outer[depth * width : (depth + 1) * width, depth] = column
    inner = graph.op("MatMul", normed, kept("inner", gate.inner.reshape(-1, hidden).T))
    inner = graph.op("Add", inner, kept("inner_bias", gate.inner_bias.ravel()))
    inner = graph.op("QuickGelu", inner, domain=MICROSOFT, alpha=1.0)  # SiLU
    return graph.op("Add", graph.op("MatMul", inner, kept("outer", outer)), kept("bias", np.append(gate.bias, ALWAYS)))
