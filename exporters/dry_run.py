"""Graphs emitted over tensors that have shapes and no numbers: how large a bundle would be."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rrt_edge.exporters.checkpoint_weights import layer_weights, outer_weights
from rrt_edge.exporters.loop_graph import emit_graphs
from rrt_edge.exporters.spec import BlockSpec
from rrt_edge.exporters.weights import Weights
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.model.projections import Read
from rrt_edge.quantisation.plan import Bits

SMALL_FILES = 5000  # bytes of the manifest, what the graph repeats of it, and the files of settings


class Shapes:
    """The parameters of a recursive model as tensors of zeros, which take no memory."""

    def __init__(self, config: RecursiveConfig) -> None:
        with torch.device("meta"):
            model = RecursiveForCausalLM(config)
        self.config = config
        self._shapes = {name: parameter.shape for name, parameter in model.named_parameters()}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def tensor(self, name: str, shape: Sequence[int] | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros((), dtype=dtype).expand(self._shapes[name])

    def close(self) -> None:
        """Nothing is held."""


def shared_weight_bytes(config: RecursiveConfig, spec: BlockSpec, plan: Bits) -> int:
    """Bytes of the weights of the graphs whose depths share one block."""
    return sum(_emitted(spec, plan, Shapes(config), None)[0].bytes_by_part.values())


def emitted_bytes(spec: BlockSpec, plan: Bits, shapes: Shapes, matrix: Read | None = None) -> int:
    """Bytes of the graphs and their weights; `matrix` reads a matrix, where it is not of floats."""
    weights, graphs = _emitted(spec, plan, shapes, matrix)
    return weights.end + graphs


def _emitted(spec: BlockSpec, plan: Bits, shapes: Shapes, matrix: Read | None) -> tuple[Weights, int]:
    """The weights, and the bytes of the graphs."""
    read: Read = (lambda name: shapes.tensor(name).numpy()) if matrix is None else matrix
    unscaled = dataclasses.replace(spec, residual_scale=1.0)  # to scale a matrix would take its memory
    weights, outer = Weights(), outer_weights(shapes, spec, read)
    with tempfile.TemporaryDirectory(prefix="rrt-edge-") as folder:
        emit_graphs(spec, plan, outer, layer_weights(shapes, unscaled, read), weights, Path(folder))
        return weights, sum(path.stat().st_size for path in Path(folder).iterdir())
