"""The graphs that devices run: one block each, driven from the host, beside the loop graph and over the same weights.

A GPU cannot leave its program between two depths, so the host calls the block depth by depth; hidden states, keys and
values stay on the device. The contract is in docs/graph.md.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from onnx import ModelProto, ValueInfoProto, helper

from rrt_edge.exporters.block import LayerWeights, Residual
from rrt_edge.exporters.builder import FLOAT, FLOAT16, INT32, INT64, MICROSOFT, Builder, declared, value
from rrt_edge.exporters.devices.block import (
    DeviceBlock,
    DeviceSurroundings,
    TabledDepths,
    attention_options,
    pattern_turns,
    rotary_patterns,
)
from rrt_edge.exporters.embedding_and_head import OuterWeights, embed, exit_gate, head
from rrt_edge.exporters.linears import Linears, RowDepths
from rrt_edge.exporters.masks import Rows
from rrt_edge.exporters.rotary import Rotations
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.exporters.weights import Weights
from rrt_edge.quantisation.plan import Bits
from rrt_edge.runtime.bundle.contract import LONG_CONTEXT
from rrt_edge.runtime.bundle.device_graphs import VERSION, why_unfit
from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS

OPSET, IR_VERSION = 21, 10  # all that the providers register
SLOTS = 4  # sequences one step serves
KINDS = {"float16": FLOAT16, "float32": FLOAT}
EXACT = 0  # accuracy_level of MatMulNBits: activations stay as they are


class DeviceGraphs:
    """Emits them layer by layer, as the loop graph is emitted."""

    def __init__(self, spec: BlockSpec, bits: Bits, outer: OuterWeights, weights: Weights) -> None:
        self.spec, self.bits, self.outer, self.weights = spec, bits, outer, weights
        self._blocks = {
            f"{name}/{form}": _BlockGraph(spec, bits, weights, kind, slots)
            for name, kind in KINDS.items()
            for form, slots in (("block", 1), ("step", SLOTS))
        }

    def also(self, layers: Iterable[LayerWeights]) -> Iterator[LayerWeights]:
        """The layers, each emitted into these graphs behind whoever else reads them."""
        for index, layer in enumerate(layers):
            yield layer
            for block in self._blocks.values():
                block.add_layer(index, layer)

    def write(self, folder: Path) -> None:
        """Write the archive, when all layers have been."""
        models = {name: block.model(self.outer) for name, block in self._blocks.items()}
        models["rows"] = _rows_graph(self.spec, self.bits, self.outer, self.weights)
        for name, kind in KINDS.items():
            models[f"{name}/head"] = _head_graph(self.spec, self.bits, self.outer, self.weights, kind)
            models[f"{name}/join"] = _join_graph(self.spec, kind)
            models[f"{name}/grow"] = _grow_graph(self.spec, kind)
            for number, window in enumerate(_windows(self.spec)):
                models[f"{name}/attend.{number}"] = _attend_graph(self.spec, kind, window)
        about = {
            "version": VERSION,
            "slots": SLOTS,
            "turns": len(rotary_patterns(self.spec)),
            "windows": _windows(self.spec),
            "attention_scale": self.spec.attention_scale,
            "attention_softcap": self.spec.attention_softcap,
            "overflows_float16": self.spec.overflows_float16,
        }
        with zipfile.ZipFile(folder / DEVICE_GRAPHS, "w", zipfile.ZIP_DEFLATED) as archive:
            files = {f"{name}.onnx": model.SerializeToString() for name, model in models.items()}
            for name, content in {"about.json": json.dumps(about).encode(), **files}.items():
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # of no date: the same each time


def has_device_graphs(spec: BlockSpec) -> bool:
    """Whether devices can run a model."""
    return not spec.propagates and why_unfit(spec.windows, spec.head_dim) is None


class _BlockGraph:
    """The block at the depth of each row, for `slots` sequences."""

    def __init__(self, spec: BlockSpec, bits: Bits, weights: Weights, kind: int, slots: int) -> None:
        self.spec, self.weights, self.kind, self.slots = spec, weights, kind, range(1, slots + 1)
        self.graph = graph = Builder()
        self.linears = Linears(weights, graph, kind, EXACT)
        self.block = DeviceBlock(spec, bits, self.linears)
        pieces = [_rows_of(graph, f"hidden.{slot}", f"rows.{slot}") for slot in self.slots]
        self._stream = Residual(pieces[0] if slots == 1 else graph.op("Concat", *pieces, axis=1))
        cos, sin = (_as(graph, name, FLOAT, kind) for name in ("cos", "sin"))
        turns = [f"turn.{number}" for number in range(len(rotary_patterns(spec)))]
        self._around = DeviceSurroundings(TabledDepths(graph, "depth", spec.loops, kind), cos, sin, turns, slots)

    def add_layer(self, index: int, weights: LayerWeights) -> None:
        self._stream, _ = self.block.layer(self.graph, index, weights, self._stream, self._around)

    def model(self, outer: OuterWeights) -> ModelProto:
        """The graph, when its layers have been added."""
        spec, graph, depths = self.spec, self.graph, self._around.depths
        normed, hidden = self.block.norm_of(graph, self._stream, "norm", outer.norm, depths)
        graph.add("Identity", [normed if spec.looping.norm_inside else hidden], ["hidden_out"])
        gate = exit_gate(graph, self.linears, spec, outer, _as(graph, normed, self.kind, FLOAT), depths)
        graph.add("Identity", [gate], ["gate"])
        inputs = [value("depth", INT64, 1, "rows"), *_rotation_values(spec)]
        if len(self.slots) > 1:
            inputs.append(value("slot_rows", INT64, len(self.slots)))
        outputs = [value("hidden_out", self.kind, 1, "rows", spec.hidden), value("gate", FLOAT, 1, "rows")]
        for slot in self.slots:
            inputs.append(value(f"hidden.{slot}", self.kind, 1, f"held.{slot}", spec.hidden))
            inputs.append(value(f"rows.{slot}", INT64, 2))
            inputs.append(value(f"last_row.{slot}", INT32, 1))
            inputs.append(value(f"length.{slot}", INT32))
            shape = (1, spec.kv_heads, f"room.{slot}", spec.head_dim)
            for layer in range(spec.layers):
                for plane in ("key", "value"):
                    inputs.append(value(f"past_{plane}.{slot}.{layer}", self.kind, *shape))
                    outputs.append(value(f"present_{plane}.{slot}.{layer}", self.kind, *shape))
        return graph_model(graph, inputs, outputs, self.weights)


def _rotation_values(spec: BlockSpec) -> list[ValueInfoProto]:
    rotated = len(spec.rotaries[0].frequencies)
    turns = range(len(rotary_patterns(spec)))
    tables = [value(name, FLOAT, "rotations", rotated) for name in ("cos", "sin")]
    return [*tables, *(value(f"turn.{number}", INT64, 1, "rows") for number in turns)]


def _rows_graph(spec: BlockSpec, bits: Bits, outer: OuterWeights, weights: Weights) -> ModelProto:
    """Return the graph of what depends on ids, positions and depths alone: it runs on the CPU, in float32."""
    graph = Builder()
    linears = Linears(weights, graph)
    embedded = embed(graph, linears, spec, bits, outer.embedding, "input_ids")
    rotations = Rotations(spec, Rows(spec, graph))
    depths = RowDepths(graph, graph.op("Unsqueeze", "row_depth", graph.constant([2])), spec.loops)
    turns = rotations.turns(graph, depths)
    named = {"embedded": embedded, "cos": rotations.cos, "sin": rotations.sin, "depth": depths.index()}
    named |= {f"turn.{number}": turn for number, turn in enumerate(pattern_turns(spec, turns))}
    for name, tensor in named.items():
        graph.add("Identity", [tensor], [name])
    inputs = [
        value("input_ids", INT64, 1, "new_tokens"),
        value("row_depth", INT64, 1, "rows"),
        value("position_ids", INT64, 1, "rows"),
    ]
    if spec.short_context is not None:
        inputs.append(declared(LONG_CONTEXT))
    outputs = [
        value("embedded", FLOAT, 1, "new_tokens", spec.hidden),
        value("depth", INT64, 1, "rows"),
        *_rotation_values(spec),
    ]
    return graph_model(graph, inputs, outputs, weights)


def _head_graph(spec: BlockSpec, bits: Bits, outer: OuterWeights, weights: Weights, kind: int) -> ModelProto:
    """Logits of some rows of what the block returned."""
    graph = Builder()
    linears = Linears(weights, graph, kind, EXACT)
    chosen = graph.op("Gather", "hidden", "rows", axis=1)
    normed = chosen
    if not spec.looping.norm_inside:
        normed = DeviceBlock(spec, bits, linears).norm(graph, chosen, "norm", outer.norm)
    logits = _as(graph, head(graph, linears, spec, bits, outer, normed), kind, FLOAT)
    graph.add("Squeeze", [logits, graph.constant([0])], ["logits"])
    inputs = [value("hidden", kind, 1, "held", spec.hidden), value("rows", INT64, "asked")]
    return graph_model(graph, inputs, [value("logits", FLOAT, "asked", spec.vocabulary)], weights)


def _join_graph(spec: BlockSpec, kind: int) -> ModelProto:
    """Rows of two tensors as one."""
    graph = Builder()
    pieces = [_rows_of(graph, f"hidden.{slot}", f"rows.{slot}") for slot in (1, 2)]
    graph.add("Concat", pieces, ["joined"], axis=1)
    inputs = [value(f"hidden.{slot}", kind, 1, f"held.{slot}", spec.hidden) for slot in (1, 2)]
    inputs += [value(f"rows.{slot}", INT64, 2) for slot in (1, 2)]
    return graph_model(graph, inputs, [value("joined", kind, 1, "rows", spec.hidden)])


def _grow_graph(spec: BlockSpec, kind: int) -> ModelProto:
    """Keys or values with more room behind them."""
    graph = Builder()
    graph.add("Pad", ["kept", "pads"], ["grown"])
    inputs = [value("kept", kind, 1, spec.kv_heads, "room", spec.head_dim), value("pads", INT64, 8)]
    return graph_model(graph, inputs, [value("grown", kind, 1, spec.kv_heads, "more_room", spec.head_dim)])


def _attend_graph(spec: BlockSpec, kind: int, window: int | None) -> ModelProto:
    """Attention alone, by which the runtime sees whether a device computes it right."""
    graph = Builder()
    inputs = ["q", "k", "v", "past_key", "past_value", "last_row", "length"]
    outputs = ["attended", "present_key", "present_value"]
    graph.add("GroupQueryAttention", inputs, outputs, MICROSOFT, **attention_options(spec, window))
    sizes = {"q": spec.heads, "k": spec.kv_heads, "v": spec.kv_heads}
    rows = [value(name, kind, 1, "rows", heads * spec.head_dim) for name, heads in sizes.items()]
    plane = (kind, 1, spec.kv_heads, "room", spec.head_dim)
    planes = [[value(f"{when}_{name}", *plane) for name in ("key", "value")] for when in ("past", "present")]
    ends = [value("last_row", INT32, 1), value("length", INT32)]
    mixed = value("attended", kind, 1, "rows", spec.heads * spec.head_dim)
    return graph_model(graph, [*rows, *planes[0], *ends], [mixed, *planes[1]])


def _windows(spec: BlockSpec) -> list[int | None]:
    """The windows that layers have, None of those that have none."""
    return list(dict.fromkeys(spec.windows[0]))


def graph_model(
    graph: Builder,
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Weights | None = None,
) -> ModelProto:
    """A graph that is driven from outside, with the weights that its nodes read."""
    stored = weights.initializers(graph.nodes) if weights is not None else []
    made = helper.make_graph(graph.nodes, "rrt", inputs, outputs, [*stored, *graph.constants])
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=IR_VERSION, producer_name="rrt-edge")


def _as(graph: Builder, tensor: str, kind: int, target: int) -> str:
    """A tensor of one float type in another."""
    return tensor if kind == target else graph.op("Cast", tensor, to=target)


def _rows_of(graph: Builder, tensor: str, rows: str) -> str:
    """The rows of a tensor [1, held, H] from the first of `rows` [2] up to the second."""
    start, end = graph.ops("Split", 2, rows, graph.constant([1, 1]), axis=0)
    return graph.op("Slice", tensor, start, end, graph.constant([1]))
