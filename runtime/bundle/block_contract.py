"""The inputs and outputs of the block graph (block.onnx), written once: for what emits it and what runs it."""

from __future__ import annotations

import numpy as np

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.contract import LONG_CONTEXT, GraphTensor, suffix
from rrt_edge.runtime.bundle.device_graphs import why_unfit

BLOCK_GRAPH = "block.onnx"
OUTPUTS = ("hidden_out", "gate", "logits")  # in front of the planes


def has_block_graph(architecture: Architecture, propagates: bool) -> bool:
    """Whether a model is exported with a block graph: not where rows that left give keys and values, where these are
    kept in 8 bits, or where its attention does not fit the operator.
    """
    unfit = why_unfit(architecture.windows or (), architecture.head_dim)
    return not propagates and architecture.kv_bits == 32 and unfit is None


def last_row(group: int) -> GraphTensor:
    """The input that says where the last row stands in each entry's planes of a KV group."""
    return GraphTensor(f"last_row.1{suffix(group)}", np.int32, ("entries",))


def length(group: int) -> GraphTensor:
    """The input that says how many rows the longest of the entries has in a KV group, new ones included."""
    return GraphTensor(f"length.1{suffix(group)}", np.int32)


def small_inputs(architecture: Architecture) -> list[GraphTensor]:
    """The inputs of a call of E entries of S rows each, of which the first may enter depth 1 as ids."""
    rows, hidden = ("entries", "rows"), architecture.hidden_size
    tensors = [
        GraphTensor("input_ids", np.int64, ("entering", "rows")),
        GraphTensor("hidden", np.float32, ("going_on", "rows", hidden)),
        GraphTensor("depth", np.int64, rows),  # counted from 0
        GraphTensor("position_ids", np.int64, rows),
        GraphTensor("least", np.float32, ("all_rows",)),  # the gate from which on a row's logits are computed
    ]
    groups = range(len(architecture.kv_groups))
    tensors += [tensor for group in groups for tensor in (last_row(group), length(group))]
    return tensors + ([GraphTensor("stayed", np.float32, rows)] if architecture.looping.gate == "hazard" else [])


def block_inputs(architecture: Architecture) -> list[GraphTensor]:
    """All inputs of one model's block graph."""
    long = [] if architecture.short_context is None else [LONG_CONTEXT]
    return [*small_inputs(architecture), *long, *_planes(architecture, "past")]


def small_outputs(architecture: Architecture) -> list[GraphTensor]:
    """The outputs of a call whose sizes are known before it."""
    hidden, gate, _ = OUTPUTS
    return [
        GraphTensor(hidden, np.float32, ("entries", "rows", architecture.hidden_size)),
        GraphTensor(gate, np.float32, ("entries", "rows")),
    ]


def block_outputs(architecture: Architecture) -> list[GraphTensor]:
    """All outputs; the planes are the inputs' memory."""
    logits = GraphTensor(OUTPUTS[-1], np.float32, ("asked", architecture.vocabulary))
    return [*small_outputs(architecture), logits, *_planes(architecture, "present")]


def _planes(architecture: Architecture, when: str) -> list[GraphTensor]:
    shape = ("entries", architecture.key_value_heads, "room", architecture.head_dim)
    names = [f"{plane}.1.{layer}" for layer in range(architecture.layers_per_block) for plane in ("key", "value")]
    return [GraphTensor(f"{when}_{name}", np.float32, shape) for name in names]
