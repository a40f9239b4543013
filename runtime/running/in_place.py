"""Arrays bound to a session whose keys and values are written where they are kept: for the CPU's graphs that do so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.contract import GraphTensor
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.running.cpu_runner import CPURunner
from rrt_edge.runtime.system.onnxruntime import onnxruntime

Float = NDArray[np.float32]


class InPlace:
    """One binding of a runner's session.

    Attributes:
        io: the binding.
        arrays: its small inputs and outputs by name, the same from call to call until they are made anew.
    """

    def __init__(self, runner: CPURunner) -> None:
        self.io: onnxruntime.IOBinding = runner.session.io_binding()
        self.arrays: dict[str, NDArray[Any]] = {}
        for name, array in runner.constant.items():
            self.io.bind_cpu_input(name, array)

    def make(self, inputs: Iterable[GraphTensor], sizes: Mapping[str, int], outputs: Iterable[GraphTensor]) -> None:
        """Make and bind the small arrays, of sizes by the names of their axes."""
        self.arrays = {}
        for tensor in inputs:
            array = self.arrays[tensor.name] = np.zeros(_shape(tensor, sizes), tensor.dtype)
            self.io.bind_cpu_input(tensor.name, array)
        for tensor in outputs:
            array = self.arrays[tensor.name] = np.empty(_shape(tensor, sizes), tensor.dtype)
            self.io.bind_output(tensor.name, "cpu", 0, tensor.dtype, array.shape, array.ctypes.data)

    def bind_plane(self, name: str, memory: NDArray[Any]) -> None:
        """Bind a layer's keys or values, as input and as output; `name` follows `past_` and `present_`."""
        where = ("cpu", 0, memory.dtype.type, memory.shape, memory.ctypes.data)
        self.io.bind_input(f"past_{name}", *where)
        self.io.bind_output(f"present_{name}", *where)

    def logits(self, index: int, rows: int, vocabulary: int, path: Path) -> Float:
        """A copy of the logits [rows, V], the output with this index.

        Raises:
            BundleError: they have another shape than the graph of a bundle gives.
        """
        right = (rows, vocabulary)
        if not rows:
            return np.zeros(right, np.float32)
        logits: Float = self.io.get_outputs()[index].numpy()
        if logits.shape != right:  # a graph may declare one shape and give another; what comes next relies on it
            raise BundleError(
                f"{path}: gives logits the shape {list(logits.shape)} where a bundle's graph gives {list(right)}; "
                "export the bundle again"
            )
        return logits


def _shape(tensor: GraphTensor, sizes: Mapping[str, int]) -> list[int]:
    return [size if isinstance(size, int) else sizes[size] for size in tensor.shape]
