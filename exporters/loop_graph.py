"""Emits the whole graph: embedding, a Loop over depth with the exit gate, LM head. The contract is in docs/graph.md."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, ValueInfoProto, helper

from rrt_edge.exporters.block import LayerWeights, Residual
from rrt_edge.exporters.block_graph import BlockGraph
from rrt_edge.exporters.builder import BOOL, FLOAT, INT64, MICROSOFT, Builder, declared, value
from rrt_edge.exporters.devices.graphs import DeviceGraphs, has_device_graphs
from rrt_edge.exporters.embedding_and_head import OuterWeights, embed, exit_gate, head, left_by_now
from rrt_edge.exporters.linears import Linears, RowDepths
from rrt_edge.exporters.loop_attention import LoopBlock, LoopSurroundings, Propagated
from rrt_edge.exporters.masks import Masks, Rows
from rrt_edge.exporters.merged_graph import merged_graph
from rrt_edge.exporters.rotary import Rotations
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.exporters.units import with_bits
from rrt_edge.exporters.weights import WeightFile, Weights
from rrt_edge.quantisation.plan import Bits
from rrt_edge.runtime.bundle.block_contract import BLOCK_GRAPH, has_block_graph
from rrt_edge.runtime.bundle.contract import STAYED, inputs_of, new_rows, outputs_of

Float = NDArray[np.float32]
OPSET, IR_VERSION = 23, 11


def emit(
    spec: BlockSpec, bits: Bits, outer: OuterWeights, layers: Iterable[LayerWeights], folder: Path, merge: bool = False
) -> dict[str, int]:
    """Write the graphs and model.onnx.data, their weights, into `folder`; returns the bytes of weights by part.

    `layers` is read one by one, so that no more than one layer is held in memory. `merge`: adapters into weights of
    each depth.
    """
    with WeightFile(folder) as weights:
        if merge:
            model = merged_graph(spec, bits, outer, with_bits(layers, bits), weights)
            (folder / "model.onnx").write_bytes(model.SerializeToString())
        else:
            emit_graphs(spec, bits, outer, layers, weights, folder)
        return weights.bytes_by_part


def emit_graphs(
    spec: BlockSpec, bits: Bits, outer: OuterWeights, layers: Iterable[LayerWeights], weights: Weights, folder: Path
) -> None:
    """Write the graphs into `folder`; their weights go where `weights` puts them."""
    devices = DeviceGraphs(spec, bits, outer, weights) if has_device_graphs(spec) else None
    alone = BlockGraph(spec, bits, outer, weights) if has_block_graph(spec.architecture, spec.propagates) else None
    layers = with_bits(layers, bits)
    layers = layers if devices is None else devices.also(layers)
    layers = layers if alone is None else alone.also(layers)
    model = _Emitter(spec, bits, weights).model(outer, layers)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if alone is not None:
        (folder / BLOCK_GRAPH).write_bytes(alone.model().SerializeToString())
    if devices is not None:
        devices.write(folder)


class _Emitter:
    def __init__(self, spec: BlockSpec, bits: Bits, weights: Weights) -> None:
        self.spec, self.bits, self.weights = spec, bits, weights
        self.top = Builder()
        self.linears = Linears(weights, self.top)
        self.block = LoopBlock(spec, bits, self.linears)

    def model(self, outer: OuterWeights, layers: Iterable[LayerWeights]) -> ModelProto:
        spec, top = self.spec, self.top
        embedded = top.op("Concat", self._embedded(outer), "hidden", axis=1)  # one of the two is empty
        rows = Rows(spec, top)
        rotations, masks = Rotations(spec, rows), Masks(spec, rows)
        last_row = rows.last()
        each = top.op("Max", rows.count, top.constant(1)) if spec.propagates else rows.count  # no division by 0
        asked_sequence = top.op("Div", "logit_rows", each)  # [R]
        stepping = top.op("Greater", top.op("Size", "slot_rows"), top.constant(0))

        trips = top.op("Add", top.op("Sub", "last", "first"), top.constant(1))
        nothing_left = top.op("Mul", last_row, top.constant(0))  # int64 [B, 1] of 0: not left yet
        flat = top.reshape(embedded, -1, spec.hidden)
        chosen = top.op("Gather", flat, "logit_rows", axis=0)  # [R, H], replaced in the first iteration
        body = self._body(outer, layers, rows, rotations, masks, last_row, asked_sequence, stepping)
        kv_planes = spec.architecture.kv_planes
        stayed = [STAYED.name] if spec.looping.gate == "hazard" else []
        carried = [embedded, chosen, nothing_left, *stayed]
        count = len(carried) + 1 + len(kv_planes)
        going_on = top.constant(True, np.bool_)
        hidden, leaving, exit_depth, *others = top.ops("Loop", count, trips, going_on, *carried, body=body)
        gate, *planes = others[len(stayed) :]
        top.add("Identity", [hidden], ["hidden_out"])
        top.add("Squeeze", [exit_depth, top.constant([1])], ["exit_depth"])
        top.add("Identity", [gate], ["gate"])
        for (name, (dtype, width)), stacked in zip(kv_planes.items(), planes, strict=True):
            self._split_layers(stacked, new_rows(name, dtype, width).name, width)
        chosen = self._leaving(stepping, leaving, hidden, gate)
        if not spec.looping.norm_inside:
            chosen = self.block.norm(top, chosen, "norm", outer.norm)
        top.add("Identity", [head(top, self.linears, spec, self.bits, outer, chosen)], ["logits"])

        inputs = [declared(tensor) for tensor in inputs_of(spec.architecture, spec.propagates)]
        outputs = [declared(tensor) for tensor in outputs_of(spec.architecture)]
        constants = [*self.weights.initializers(top.nodes), *top.constants]
        graph = helper.make_graph(top.nodes, "rrt", inputs, outputs, constants)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="rrt-edge")

    def _embedded(self, outer: OuterWeights) -> str:
        return embed(self.top, self.linears, self.spec, self.bits, outer.embedding, "input_ids")

    def _leaving(self, stepping: str, leaving: str, hidden: str, gate: str) -> str:
        """The rows whose logits are wanted, [R, H]: those asked for, or in a step those whose gate lets them leave."""
        full, step = Builder(self.top), Builder(self.top)
        reached = step.op("GreaterOrEqual", step.reshape(gate, -1), "row_threshold")  # one depth: [N]
        exited = step.op("Compress", step.reshape(hidden, -1, self.spec.hidden), reached, axis=0)
        branches = {
            "then_branch": step.branch([exited], "rows_that_leave"),
            "else_branch": full.branch([full.op("Identity", leaving)], "rows_asked_for"),
        }
        return self.top.op("If", stepping, **branches)

    def _body(
        self,
        outer: OuterWeights,
        layers: Iterable[LayerWeights],
        rows: Rows,
        rotations: Rotations,
        masks: Masks,
        last_row: str,
        asked_sequence: str,
        stepping: str,
    ) -> GraphProto:
        """One iteration: the block at one depth, the gate, and whether every sequence has left."""
        body, spec = Builder(self.top), self.spec
        carried = ("hidden_before", "leaving_before", "exit_before", "stayed_before")
        depth = body.op("Add", "first", "iteration")
        row_depth = body.op("Unsqueeze", body.op("Add", "row_depth", "iteration"), body.constant([2]))  # [B, N, 1]
        own_depth = rows.behind_exited(body, row_depth)  # [B, S, 1]
        choice = body.op("Where", stepping, body.constant(spec.loops + 1), depth)
        choices = [body.op("Equal", choice, body.constant(number)) for number in range(1, spec.loops + 1)]
        depths = every_depth = RowDepths(body, own_depth, spec.loops)
        propagated = None
        if spec.propagates:
            every_depth = RowDepths(body, row_depth, spec.loops)
            start, end = body.constant([0]), body.op("Shape", "left_hidden", start=1, end=2)
            left_depth = body.op("Slice", row_depth, start, end, body.constant([1]))
            propagated = Propagated("left_hidden", every_depth, RowDepths(body, left_depth, spec.loops))
        seen, slots = masks.past(body, choices, depth, depths), masks.slots(body, stepping, depths)
        turns = rotations.turns(body, every_depth)
        around = LoopSurroundings(choices, depths, rotations.cos, rotations.sin, seen, slots, propagated, turns)

        stream = Residual(carried[0])
        planes: list[list[str]] = [[] for _ in spec.architecture.kv_planes]
        for index, layer in enumerate(layers):
            stream, new = self.block.layer(body, index, layer, stream, around)
            for plane, rows_of_layer in zip(planes, new, strict=True):
                plane.append(rows_of_layer)
        normed, hidden = self.block.norm_of(body, stream, "norm", outer.norm, depths)
        if spec.looping.norm_inside:
            hidden = normed

        gate = exit_gate(body, self.linears, spec, outer, normed, depths)
        staying = []
        if spec.looping.gate == "hazard":
            stays, gate = left_by_now(body, carried[3], gate)
            staying = [stays]
        ends = gate
        if spec.propagates:  # there may be no row but those that have left: then -1 picks this one
            shape = body.op("Concat", body.op("Shape", gate, start=0, end=1), body.constant([1]), axis=0)
            always = body.op("Expand", body.constant([[1.0]], np.float32), shape)
            ends = body.op("Concat", gate, always, axis=1)
        reached = body.op("GreaterOrEqual", body.op("GatherElements", ends, last_row, axis=1), "threshold")  # [B, 1]
        leaves = body.op("Or", reached, body.op("Equal", depth, "last"))
        inside = body.op("Equal", carried[2], body.constant(0))  # [B, 1]
        exit_depth = body.op("Where", body.op("And", inside, leaves), depth, carried[2])

        # A row asked for keeps the state of the depth its sequence left at, whatever the others still need.
        chosen = body.op("Gather", body.reshape(hidden, -1, spec.hidden), "logit_rows", axis=0)  # [R, H]
        still_inside = body.op("Gather", inside, asked_sequence, axis=0)  # [R, 1]
        leaving = body.op("Where", still_inside, chosen, carried[1])
        nobody_left = body.op("ReduceMin", exit_depth, keepdims=0)
        go_on = body.op("Equal", nobody_left, body.constant(0))

        scanned = [gate, *(body.op("Concat", *plane, axis=1) for plane in planes)]
        outputs = [go_on, hidden, leaving, exit_depth, *staying, *scanned]
        inputs = [
            value("iteration", INT64),
            value("going_on", BOOL),
            value(carried[0], FLOAT, "batch", "rows", spec.hidden),
            value(carried[1], FLOAT, "asked", spec.hidden),
            value(carried[2], INT64, "batch", 1),
            *(value(carried[3], FLOAT, "batch", "rows") for _ in staying),
        ]
        return helper.make_graph(body.nodes, "depth", inputs, [ValueInfoProto(name=name) for name in outputs])

    def _split_layers(self, stacked: str, name: str, width: int) -> None:
        """[n, B, layers * KV, N, width] -> [n, B, layers, KV, N, width]."""
        spec = self.spec
        shape = self.top.constant([0, 0, spec.layers, spec.kv_heads, -1, width])
        self.top.add("Reshape", [stacked, shape], [name])
