"""The bundle's graph in onnxruntime: one call runs rows through some depths."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by onnxruntime at its first call

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from rrt_edge.runtime.cache import KVCache
from rrt_edge.runtime.errors import BundleError, RRTEdgeError
from rrt_edge.runtime.manifest import Architecture

Float = NDArray[np.float32]
Int = NDArray[np.int64]
OUTPUTS = ("logits", "hidden_out", "gate", "exit_depth", "new_key", "new_value")
ERRORS_ONLY = 3  # onnxruntime's log level


@dataclass(frozen=True)
class Pass:
    """What one call of the graph returned, for one sequence of S rows that ran depths `first` to `last`.

    `logits` [R, V] of the rows asked for, `hidden` [S, H] after the last depth run, `gate` [n, S] at each depth run;
    the new keys and values are in the cache already.
    """

    first: int
    last: int
    logits: Float
    hidden: Float
    gate: Float


class Graph:
    """One onnxruntime session over model.onnx, shared by every conversation.

    Raises:
        BundleError: onnxruntime does not load the graph, or it is not the graph the manifest describes.
    """

    def __init__(self, bundle: Path, architecture: Architecture, threads: int | None) -> None:
        self.architecture = architecture
        options = onnxruntime.SessionOptions()
        options.log_severity_level = ERRORS_ONLY
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            path = str(bundle / "model.onnx")
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime raises several unrelated types
            raise BundleError(f"{bundle / 'model.onnx'}: onnxruntime cannot load it ({_first_line(error)})") from error
        self._check_contract(bundle / "model.onnx")
        self._no_hidden = np.zeros((1, 0, architecture.hidden_size), np.float32)
        self._no_ids = np.zeros((1, 0), np.int64)

    def bind(self) -> Binding:
        """A binding for one conversation; its cache stays bound between calls."""
        return Binding(self.session.io_binding())

    def run(
        self,
        binding: Binding,
        cache: KVCache,
        rows: Int | Float,
        *,
        first: int,
        last: int,
        threshold: float,
        logit_rows: Sequence[int],
    ) -> Pass:
        """Run rows of one sequence through depths `first` to `last`, stopping where the last row's gate says so.

        Args:
            rows: token ids [S] entering depth 1, or hidden states [S, H] that have run `first - 1` depths. They stand
                right behind the rows that have run depth `first`.
            logit_rows: the rows whose logits are asked for, as indices into `rows`.

        Raises:
            RRTEdgeError: onnxruntime failed.
        """
        count = len(rows)
        start = cache.lengths[first - 1]
        entering = rows.ndim == 1
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": rows[None] if entering else self._no_ids,
            "hidden": self._no_hidden if entering else rows[None],
            "row_depth": np.full((1, count), first, np.int64),
            "position_ids": np.arange(start, start + count, dtype=np.int64)[None],
            "first": np.array(first, np.int64),
            "last": np.array(last, np.int64),
            "threshold": np.array(threshold, np.float32),
            "logit_rows": np.array(logit_rows, np.int64),
            "past_length": np.array([cache.lengths], np.int64),
        }
        logits, hidden, gate, _, keys, values = binding.run(self.session, feeds, cache)
        ran = len(gate)
        for index in range(ran):
            cache.append(first + index, keys[index, 0], values[index, 0])
        return Pass(first, first + ran - 1, logits, hidden[0], gate[:, 0])

    def _check_contract(self, path: Path) -> None:
        shape = self.architecture
        found = {value.name: value.shape for value in self.session.get_inputs()}
        missing = [name for name in OUTPUTS if name not in {value.name for value in self.session.get_outputs()}]
        for depth in range(1, shape.loops + 1):
            for layer in range(shape.layers_per_block):
                wanted = ["batch", shape.key_value_heads, f"past_{depth}", shape.head_dim]
                for kind in ("past_key", "past_value"):
                    if found.get(f"{kind}.{depth}.{layer}") != wanted:
                        missing.append(f"{kind}.{depth}.{layer}")
        slots = 2 * shape.loops * shape.layers_per_block
        if missing or len(found) != slots + 9:
            raise BundleError(f"{path}: is not the graph its manifest describes ({', '.join(missing[:3]) or 'inputs'})")


class Binding:
    """Inputs and outputs bound for one conversation: the cache is bound again only where it has moved."""

    def __init__(self, binding: onnxruntime.IOBinding) -> None:
        self.binding = binding
        self._bound: dict[int, object] = {}

    def run(self, session: onnxruntime.InferenceSession, feeds: dict[str, NDArray[Any]], cache: KVCache) -> list[Any]:
        for depth in range(1, len(cache.lengths) + 1):
            keys, values = cache.buffers(depth)
            if self._bound.get(depth) is not keys:
                for layer in range(len(keys)):
                    self.binding.bind_cpu_input(f"past_key.{depth}.{layer}", keys[layer])
                    self.binding.bind_cpu_input(f"past_value.{depth}.{layer}", values[layer])
                self._bound[depth] = keys
        for name, array in feeds.items():
            self.binding.bind_cpu_input(name, array)
        for name in OUTPUTS:
            self.binding.bind_output(name)
        try:
            session.run_with_iobinding(self.binding)
        except Exception as error:  # onnxruntime raises several unrelated types
            raise RRTEdgeError(f"onnxruntime failed while running the model: {_first_line(error)}") from error
        return list(self.binding.copy_outputs_to_cpu())


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
