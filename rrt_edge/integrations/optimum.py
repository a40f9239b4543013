"""What optimum's TasksManager knows of recursive models: the exporter `rrt`, for text generation."""

from __future__ import annotations

from optimum.exporters.base import ExporterConfig
from optimum.exporters.tasks import TasksManager
from optimum.utils import NormalizedTextConfig


@TasksManager.create_register("rrt")("rrt", "text-generation")
class RRTExporterConfig(ExporterConfig):  # type: ignore[misc]
    """Names and dynamic axes of the graph's inputs and outputs but the pasts (docs/graph.md)."""

    NORMALIZED_CONFIG_CLASS = NormalizedTextConfig.with_args(num_layers="loops")

    @property
    def inputs(self) -> dict[str, dict[int, str]]:
        rows = {0: "batch", 1: "key_rows"}
        return {
            "input_ids": {0: "batch", 1: "new_tokens"},
            "hidden": {0: "batch", 1: "resumed_rows"},
            "row_depth": rows,
            "position_ids": rows,
            "first": {},
            "last": {},
            "threshold": {},
            "logit_rows": {0: "asked"},
            "slot_rows": {0: "slots"},
            "row_threshold": {0: "step_rows"},
            "past_length": {0: "batch"},
        }

    @property
    def outputs(self) -> dict[str, dict[int, str]]:
        new_rows = {0: "depths", 1: "batch", 4: "key_rows"}
        return {
            "logits": {0: "asked"},
            "hidden_out": {0: "batch", 1: "rows"},
            "gate": {0: "depths", 1: "batch", 2: "rows"},
            "exit_depth": {0: "batch"},
            "new_key": new_rows,
            "new_value": new_rows,
        }
