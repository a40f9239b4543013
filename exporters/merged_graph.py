"""The graph whose depths have weights of their own, adapters merged into them: one call runs any depths.

An If around each depth skips those that a call does not ask for, and those behind the depth where the gate lets its
last row leave. Keys and values are written where they are kept. The contract is in docs/graph.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from onnx import ModelProto

from rrt_edge.exporters.block import LayerWeights, Norm, Residual
from rrt_edge.exporters.builder import FLOAT, MICROSOFT, Builder, declared
from rrt_edge.exporters.devices.block import DeviceBlock, DeviceSurroundings, attention_options, pattern_turns
from rrt_edge.exporters.devices.graphs import graph_model
from rrt_edge.exporters.embedding_and_head import OuterWeights, embed, exit_gate, head
from rrt_edge.exporters.linears import Linears, RowDepths
from rrt_edge.exporters.masks import Rows
from rrt_edge.exporters.rotary import Rotations
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.exporters.weights import Weights
from rrt_edge.quantisation.blocks import Quantized
from rrt_edge.quantisation.plan import Bits
from rrt_edge.quantisation.wide import Adapted
from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.device_graphs import why_unfit
from rrt_edge.runtime.bundle.merged_contract import OUTPUTS, ends, merged_inputs, merged_outputs, planes_of
from rrt_edge.runtime.errors import BadInputError


def check_mergeable(source: Path, architecture: Architecture) -> None:
    """
    Raises:
        BadInputError: attention is not what the graph of merged weights can run.
    """
    reason = why_unfit(architecture.windows or (), architecture.head_dim)
    if reason is not None:
        raise BadInputError(f"{source}: merge-adapters does not go with this model; leave it out ({reason})")


def merged_graph(
    spec: BlockSpec, bits: Bits, outer: OuterWeights, layers: Iterable[LayerWeights], weights: Weights
) -> ModelProto:
    """The graph; `layers` is read one by one, each of which is emitted at every depth."""
    top = Builder()
    linears = Linears(weights, top)
    embedded = embed(top, linears, spec, bits, outer.embedding, "input_ids")
    entered = top.op("Concat", embedded, "hidden", axis=0)  # one of the two is empty
    before = [
        entered,
        entered,
        top.op("Cast", "position_ids", to=FLOAT),
        top.constant([True], np.bool_),
        top.constant(0),
    ]
    rotations = Rotations(spec, Rows(spec, top))
    states = [entered, *(f"hidden.{depth}" for depth in range(1, spec.loops))]
    depths = [_Depth(spec, bits, linears, rotations, number, state) for number, state in enumerate(states, 1)]
    for index, layer in enumerate(layers):
        for depth in depths:
            depth.add_layer(index, layer)
    wanted = _within(top, spec.loops)
    gates = []
    for depth in depths:
        before = depth.close(before, wanted[depth.number - 1], outer)
        gates.append(before[2])
    hidden, normed, gate, _, exit_depth = before
    reached = top.op("GreaterOrEqual", top.reshape(gate, -1), "least")
    chosen = top.op("Compress", top.reshape(normed, -1, spec.hidden), reached, axis=0)
    logits = head(top, linears, spec, bits, outer, chosen)
    every_gate = top.op("Concat", *gates, axis=0)
    for tensor, name in zip((hidden, every_gate, exit_depth, logits), OUTPUTS, strict=True):
        top.add("Identity", [tensor], [name])
    inputs = [declared(tensor) for tensor in merged_inputs(spec.architecture)]
    outputs = [declared(tensor) for tensor in merged_outputs(spec.architecture)]
    return graph_model(top, inputs, outputs, weights)


def _within(top: Builder, loops: int) -> list[str]:
    """Whether each depth is one of `first` to `last`, bool [1]."""
    numbers = top.constant(range(1, loops + 1))
    asked = top.op("And", top.op("LessOrEqual", "first", numbers), top.op("LessOrEqual", numbers, "last"))
    return top.ops("Split", loops, asked, top.constant([1] * loops), axis=0)


class _Depth:
    """The branch that runs one depth."""

    def __init__(
        self, spec: BlockSpec, bits: Bits, linears: Linears, rotations: Rotations, number: int, hidden: str
    ) -> None:
        """`hidden`: the states behind the depth before, by name."""
        self.spec, self.number, self.linears = spec, number, linears
        self.graph = graph = Builder(linears.top)
        self.block = _OneDepth(spec, bits, linears, number)
        self.depths = _Chosen(graph, number, spec.loops)
        turns = pattern_turns(spec, rotations.turns(graph, self.depths))
        self._around = DeviceSurroundings(self.depths, rotations.cos, rotations.sin, turns, 1)
        self._stream = Residual(hidden)

    def add_layer(self, index: int, layer: LayerWeights) -> None:
        own = at_depth(layer, self.number - 1)
        self._stream, _ = self.block.layer(self.graph, index, own, self._stream, self._around)

    def close(self, before: Sequence[str], wanted: str, outer: OuterWeights) -> list[str]:
        """Emit the If into the outermost graph, when all layers have been; returns the names behind it of what `before`
        names: states, the same normed, gates, whether a row may go on, and the last depth that ran."""
        top, graph = self.linears.top, self.graph
        norm = _norm_at(outer.norm, self.number - 1)
        name = "norm" if norm is outer.norm else f"norm.{self.number}"
        normed, hidden = self.block.norm_of(graph, self._stream, name, norm, self.depths)
        gate = exit_gate(graph, self.linears, self.spec, outer, normed, self.depths)
        of_last = graph.op("Gather", gate, graph.constant(-1), axis=1)
        goes_on = graph.op("Less", of_last, "threshold")
        ran = graph.op("Identity", graph.constant(self.number))
        kept = [name for layer in range(self.spec.layers) for name in planes_of(layer, self.number)]
        others = Builder(top)
        skipped = [others.op("Identity", tensor) for tensor in [*before, *(f"past_{name}" for name in kept)]]
        branches = {
            "then_branch": graph.branch(
                [hidden, normed, gate, goes_on, ran, *self.block.planes], f"depth_{self.number}"
            ),
            "else_branch": others.branch(skipped, f"no_depth_{self.number}"),
        }
        behind = [f"{name}.{self.number}" for name in ("hidden", "normed", "gate", "goes_on", "ran")]
        chosen = top.op("And", wanted, before[3])
        top.add("If", [chosen], [*behind, *(f"present_{name}" for name in kept)], **branches)
        return behind


class _Chosen(RowDepths):
    """Picks by a depth that is known: that of the branch."""

    def __init__(self, graph: Builder, depth: int, loops: int) -> None:
        super().__init__(graph, "", loops)
        self._depth = depth

    def pick(self, table: str) -> str:
        return self.graph.op("Gather", table, self.graph.constant(self._depth - 1), axis=0)

    def equal(self, depths: Sequence[int], kind: int) -> str:
        return self.graph.constant([[[int(depth == self._depth) for depth in depths]]], np.float32)


class _OneDepth(DeviceBlock):
    """Emits the layers of the block at one depth; `planes` are their keys and values by name."""

    def __init__(self, spec: BlockSpec, bits: Bits, linears: Linears, depth: int) -> None:
        super().__init__(spec, bits, linears)
        self.prefix, self.depth, self.planes = f"block.{depth}", depth, list[str]()

    def _attend(self, graph: Builder, layer: int, slot: int, q: str, k: str, v: str, end: str = "") -> str:
        names = planes_of(layer, self.depth)
        counts = [tensor.name for tensor in ends(self.depth, self.spec.kv_group(layer))]
        inputs = [q, k, v, *(f"past_{name}" for name in names), *counts]
        attended, *planes = [f"{name}.of" for name in (f"attended.{self.depth}.{layer}", *names)]
        graph.add(
            "GroupQueryAttention",
            inputs,
            [attended, *planes],
            MICROSOFT,
            **attention_options(self.spec, self.spec.windows[0][layer]),
        )
        self.planes += planes
        return attended


def at_depth(layer: LayerWeights, depth: int) -> LayerWeights:
    """A layer as it is at a depth, counted from 0: W + B A of that depth in the place of its matrices."""
    norms = {role: _norm_at(norm, depth) for role, norm in layer.norms.items()}
    parts = {name: getattr(layer, name) for name in ("q", "k", "v", "o", "gate", "up", "down")}
    return LayerWeights(norms, **{name: part and _merged(part, depth) for name, part in parts.items()})


def _norm_at(norm: Norm, depth: int) -> Norm:
    if norm.weight.ndim == 1:
        return norm
    return Norm(norm.weight[depth], None if norm.bias is None else norm.bias[depth])


def _merged(linear: Adapted, depth: int) -> Adapted:
    weight, bias = linear.weight, linear.bias
    if linear.a is not None and linear.b is not None:
        assert not isinstance(weight, Quantized)
        weight = weight + linear.b[depth] @ linear.a[depth]
    return replace(linear, weight=weight, bias=bias if bias is None or bias.ndim == 1 else bias[depth], a=None, b=None)
