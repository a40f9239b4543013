"""The inputs and outputs of a bundle's graph, written once: for what emits it, what runs it and what tells of it.

docs/graph.md says what each means, and is compared with this. Which inputs and outputs a graph has depends on its
architecture (KV groups, frequencies for long contexts, bits of keys and values, the kind of gate) and on whether rows
that have left propagate; `inputs_of` and `outputs_of` give all of one graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rrt_edge.runtime.bundle.architecture import Architecture

SIZES = (
    "hidden_size",
    "vocabulary",
    "pasts",
    "layers_per_block",
    "key_value_heads",
    "head_dim",
)  # fields of `Architecture`


@dataclass(frozen=True)
class GraphTensor:
    """An input or output: its element type, and the names and numbers of its dimensions."""

    name: str
    dtype: type[np.generic]
    shape: tuple[int | str, ...] = ()

    @property
    def onnx_type(self) -> str:
        """The element type as onnxruntime writes it: `tensor(int64)`."""
        names = {"float32": "float"}
        name = np.dtype(self.dtype).name
        return f"tensor({names.get(name, name)})"

    @property
    def dynamic_axes(self) -> dict[int, str]:
        """The dimensions that differ from call to call, by their place in the shape."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str) and size not in SIZES}

    def of(self, architecture: Architecture) -> GraphTensor:
        """Return the tensor with an architecture's numbers in the place of the names in `SIZES`."""
        shape = tuple(getattr(architecture, size) if size in SIZES else size for size in self.shape)
        return GraphTensor(self.name, self.dtype, shape)


INPUTS = (
    GraphTensor("input_ids", np.int64, ("batch", "new_tokens")),
    GraphTensor("hidden", np.float32, ("batch", "resumed_rows", "hidden_size")),
    GraphTensor("row_depth", np.int64, ("batch", "key_rows")),
    GraphTensor("position_ids", np.int64, ("batch", "key_rows")),
    GraphTensor("first", np.int64),
    GraphTensor("last", np.int64),
    GraphTensor("threshold", np.float32),
    GraphTensor("logit_rows", np.int64, ("asked",)),
    GraphTensor("slot_rows", np.int64, ("slots",)),
    GraphTensor("row_threshold", np.float32, ("step_rows",)),
)
LONG_CONTEXT = GraphTensor("long_context", np.bool_)  # where there are two sets of rotary frequencies
STAYED = GraphTensor("stayed", np.float32, ("batch", "rows"))  # where the gate is a hazard
PROPAGATING_INPUTS = (  # where rows that have left propagate
    GraphTensor("left_hidden", np.float32, ("batch", "left_rows", "hidden_size")),
    GraphTensor("slot_left_rows", np.int64, ("slots",)),
)
OUTPUTS = (
    GraphTensor("logits", np.float32, ("asked", "vocabulary")),
    GraphTensor("hidden_out", np.float32, ("batch", "rows", "hidden_size")),
    GraphTensor("gate", np.float32, ("depths", "batch", "rows")),
    GraphTensor("exit_depth", np.int64, ("batch",)),
)


def past_length(group: int) -> GraphTensor:
    """The input that says how many rows of a KV group's pasts are valid."""
    return GraphTensor(f"past_length{suffix(group)}", np.int64, ("batch", "pasts"))


def past_name(plane: str, past: int, layer: int) -> str:
    """The name of an input: a plane of a layer's past. Pasts count from 1, layers from 0."""
    return f"past_{plane}.{past}.{layer}"


def new_rows(plane: str, dtype: type[np.generic], width: int | str) -> GraphTensor:
    """The output that holds the new rows of a plane, for each depth run."""
    shape = ("depths", "batch", "layers_per_block", "key_value_heads", "key_rows", width)
    return GraphTensor(f"new_{plane}", dtype, shape)


def inputs_of(architecture: Architecture, propagates: bool) -> tuple[GraphTensor, ...]:
    """Return all inputs of a graph, in order."""
    groups = architecture.kv_groups
    inputs = [*INPUTS, *(past_length(group) for group in range(len(groups)))]
    inputs += [] if architecture.short_context is None else [LONG_CONTEXT]
    inputs += [STAYED] if architecture.looping.gate == "hazard" else []
    inputs += PROPAGATING_INPUTS if propagates else ()
    group_of = {layer: group for group, layers in enumerate(groups) for layer in layers}
    for past in range(1, architecture.pasts + 1):
        for layer in range(architecture.layers_per_block):
            rows = f"past_{past}{suffix(group_of[layer])}"
            for plane, (dtype, width) in architecture.kv_planes.items():
                shape = ("batch", "key_value_heads", rows, width)
                inputs.append(GraphTensor(past_name(plane, past, layer), dtype, shape))
    return tuple(tensor.of(architecture) for tensor in inputs)


def outputs_of(architecture: Architecture) -> tuple[GraphTensor, ...]:
    """Return all outputs of a graph, in order."""
    planes = [new_rows(plane, dtype, width) for plane, (dtype, width) in architecture.kv_planes.items()]
    return tuple(tensor.of(architecture) for tensor in (*OUTPUTS, *planes))


def suffix(group: int) -> str:
    """Behind the names of what belongs to a KV group: nothing where it is the first."""
    return f".{group}" if group else ""
