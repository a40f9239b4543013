"""A thin builder over onnx.helper: nodes with fresh names, small constants, subgraphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from rrt_edge.runtime.bundle.contract import GraphTensor

MICROSOFT = "com.microsoft"
FLOAT, FLOAT16, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BOOL
INT64, INT32, INT8 = TensorProto.INT64, TensorProto.INT32, TensorProto.INT8


class Builder:
    """Collects the nodes of one graph; a subgraph's builder shares the names and constants of its parent."""

    def __init__(self, parent: Builder | None = None) -> None:
        self.nodes: list[NodeProto] = []
        self._names: Iterator[int] = parent._names if parent else count()
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = parent._constants if parent else {}
        self.constants: list[TensorProto] = parent.constants if parent else []

    def op(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        """Add a node with one output; returns the output's name."""
        return self.ops(kind, 1, *inputs, domain=domain, **attributes)[0]

    def ops(self, kind: str, outputs: int, *inputs: str, domain: str = "", **attributes: Any) -> list[str]:
        """Add a node with several outputs; returns their names."""
        names = [f"{kind.lower()}_{next(self._names)}" for _ in range(outputs)]
        self.add(kind, inputs, names, domain, **attributes)
        return names

    def add(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str], domain: str = "", **attributes: Any
    ) -> None:
        """Add a node whose outputs are named by the caller."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), domain=domain, **attributes))

    def constant(self, value: Any, dtype: type[np.generic] = np.int64) -> str:
        """A small constant, stored once however often it is asked for."""
        array: NDArray[Any] = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = f"constant_{next(self._names)}"
            self.constants.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def reshape(self, tensor: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 takes what is left."""
        return self.op("Reshape", tensor, self.constant(shape))

    def transpose(self, tensor: str, *order: int) -> str:
        return self.op("Transpose", tensor, perm=list(order))

    def branch(self, outputs: Sequence[str], name: str) -> GraphProto:
        """These nodes as a branch of an If."""
        values = [ValueInfoProto(name=output) for output in outputs]  # the type follows from the nodes
        return helper.make_graph(self.nodes, name, [], values)


def value(name: str, kind: int, *shape: int | str) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, list(shape))


def declared(tensor: GraphTensor) -> ValueInfoProto:
    """An input or output of the contract."""
    return value(tensor.name, helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype)), *tensor.shape)


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
