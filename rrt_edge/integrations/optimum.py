"""What optimum's TasksManager knows of recursive models: the exporter `rrt`, for text generation."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from optimum.exporters.base import ExporterConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig

from rrt_edge.runtime.bundle.contract import INPUTS, OUTPUTS, GraphTensor, new_rows, past_length


@TasksManager.create_register("rrt")("rrt", "text-generation")
class RRTExporterConfig(ExporterConfig):  # type: ignore[misc]
    """Names and dynamic axes of the graph's inputs and outputs but the pasts (docs/graph.md)."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig.with_args(num_layers="loops")

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        return _axes((*INPUTS, past_length(0)))

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        planes = [new_rows(plane, np.float32, "head_dim") for plane in ("key", "value")]
        return _axes((*OUTPUTS, *planes))


def _axes(tensors: Iterable[GraphTensor]) -> dict[str, dict[int, str]]:
    return {tensor.name: tensor.dynamic_axes for tensor in tensors}
