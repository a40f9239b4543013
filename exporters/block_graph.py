"""The graph that the CPU runs depth by depth: the block once, keys and values written where they are kept.

It stands beside the loop graph, over the same weights. The texts of its batch are entries: rows of one sequence at one
depth, or one row at each of several depths, which read the weights together. The contract is in docs/graph.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import ModelProto

from rrt_edge.exporters.block import LayerWeights, Residual
from rrt_edge.exporters.builder import FLOAT, Builder, declared
from rrt_edge.exporters.devices.block import (
    DeviceBlock,
    DeviceSurroundings,
    TabledDepths,
    pattern_turns,
)
from rrt_edge.exporters.devices.graphs import graph_model
from rrt_edge.exporters.embedding_and_head import OuterWeights, embed, exit_gate, head, left_by_now
from rrt_edge.exporters.linears import Linears
from rrt_edge.exporters.masks import Rows
from rrt_edge.exporters.rotary import Rotations
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.exporters.weights import Weights
from rrt_edge.quantisation.plan import Bits
from rrt_edge.runtime.bundle.block_contract import OUTPUTS, block_inputs, block_outputs, last_row
from rrt_edge.runtime.bundle.contract import STAYED


class BlockGraph:
    """Emits it layer by layer, as the loop graph is emitted."""

    def __init__(self, spec: BlockSpec, bits: Bits, outer: OuterWeights, weights: Weights) -> None:
        self.spec, self.bits, self.outer, self.weights = spec, bits, outer, weights
        self.graph = graph = Builder()
        self.linears = Linears(weights, graph)
        self.block = DeviceBlock(spec, bits, self.linears)
        embedded = embed(graph, self.linears, spec, bits, outer.embedding, "input_ids")
        self._stream = Residual(graph.op("Concat", embedded, "hidden", axis=0))  # of one kind there may be none
        depths, rotations = TabledDepths(graph, "depth", spec.loops, FLOAT), Rotations(spec, Rows(spec, graph))
        turns = pattern_turns(spec, rotations.turns(graph, depths))
        group_of = {layer: group for group, members in enumerate(spec.architecture.kv_groups) for layer in members}
        ends = [last_row(group_of[layer]).name.removeprefix("last_row.1") for layer in range(spec.layers)]
        self._around = DeviceSurroundings(depths, rotations.cos, rotations.sin, turns, 1, ends)

    def also(self, layers: Iterable[LayerWeights]) -> Iterator[LayerWeights]:
        """The layers, each emitted into this graph behind whoever else reads them."""
        for index, layer in enumerate(layers):
            yield layer
            self._stream, _ = self.block.layer(self.graph, index, layer, self._stream, self._around)

    def model(self) -> ModelProto:
        """The graph, when all layers have been."""
        spec, graph, depths = self.spec, self.graph, self._around.depths
        normed, hidden = self.block.norm_of(graph, self._stream, "norm", self.outer.norm, depths)
        gate = exit_gate(graph, self.linears, spec, self.outer, normed, depths)
        if spec.looping.gate == "hazard":
            _, gate = left_by_now(graph, STAYED.name, gate)
        reached = graph.op("GreaterOrEqual", graph.reshape(gate, -1), "least")
        chosen = graph.op("Compress", graph.reshape(normed, -1, spec.hidden), reached, axis=0)
        logits = head(graph, self.linears, spec, self.bits, self.outer, chosen)
        going_on = normed if spec.looping.norm_inside else hidden
        for tensor, name in zip((going_on, gate, logits), OUTPUTS, strict=True):
            graph.add("Identity", [tensor], [name])
        architecture = spec.architecture
        inputs = [declared(tensor) for tensor in block_inputs(architecture)]
        outputs = [declared(tensor) for tensor in block_outputs(architecture)]
        return graph_model(graph, inputs, outputs, self.weights)
