"""The inputs and outputs of the graph whose depths have weights of their own, written once: for what emits and runs it.

Such a bundle's model.onnx has them in the place of those in `contract`.
"""

from __future__ import annotations

import numpy as np

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.contract import LONG_CONTEXT, GraphTensor, suffix

OUTPUTS = ("hidden_out", "gate", "exit_depth", "logits")  # in front of the planes


def ends(depth: int, group: int) -> tuple[GraphTensor, GraphTensor]:
    """The inputs that say where the last row stands in a depth's planes of a KV group, and how many rows these have
    with it."""
    name = f"{depth}{suffix(group)}"
    return GraphTensor(f"last_row.{name}", np.int32, (1,)), GraphTensor(f"length.{name}", np.int32)


def small_inputs(architecture: Architecture) -> list[GraphTensor]:
    """The inputs of a call of S rows of one sequence, which enter depth 1 as ids or a deeper one as hidden states."""
    tensors = [
        GraphTensor("input_ids", np.int64, ("entering", "rows")),  # 1 or 0 of them
        GraphTensor("hidden", np.float32, ("going_on", "rows", architecture.hidden_size)),
        GraphTensor("position_ids", np.int64, (1, "rows")),
        GraphTensor("first", np.int64),
        GraphTensor("last", np.int64),
        GraphTensor("threshold", np.float32),
        GraphTensor("least", np.float32, ("rows",)),  # the gate from which on a row's logits are computed
    ]
    groups = range(len(architecture.kv_groups))
    return tensors + [tensor for depth in _depths(architecture) for group in groups for tensor in ends(depth, group)]


def merged_inputs(architecture: Architecture) -> list[GraphTensor]:
    """All inputs of one model's graph."""
    long = [] if architecture.short_context is None else [LONG_CONTEXT]
    return [*small_inputs(architecture), *long, *_planes(architecture, "past")]


def small_outputs(architecture: Architecture) -> list[GraphTensor]:
    """The outputs of a call whose sizes are known before it."""
    hidden, gate, exit_depth, _ = OUTPUTS
    return [
        GraphTensor(hidden, np.float32, (1, "rows", architecture.hidden_size)),
        GraphTensor(gate, np.float32, (architecture.loops, "rows")),
        GraphTensor(exit_depth, np.int64),
    ]


def merged_outputs(architecture: Architecture) -> list[GraphTensor]:
    """All outputs; the planes are the inputs' memory."""
    logits = GraphTensor(OUTPUTS[-1], np.float32, ("asked", architecture.vocabulary))
    return [*small_outputs(architecture), logits, *_planes(architecture, "present")]


def planes_of(layer: int, depth: int) -> tuple[str, str]:
    """What follows `past_` and `present_` in the names of a layer's keys and values at a depth."""
    return f"key.{depth}.{layer}", f"value.{depth}.{layer}"


def _planes(architecture: Architecture, when: str) -> list[GraphTensor]:
    shape = (architecture.key_value_heads, "room", architecture.head_dim)
    layers = range(architecture.layers_per_block)
    names = [(depth, name) for depth in _depths(architecture) for layer in layers for name in planes_of(layer, depth)]
    return [
        GraphTensor(f"{when}_{name}", np.float32, (1, shape[0], f"room.{depth}", shape[2])) for depth, name in names
    ]


def _depths(architecture: Architecture) -> range:
    return range(1, architecture.loops + 1)
