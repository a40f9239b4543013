"""Calls of onnxruntime on the CPU: bounded in time, failures told once, memory given back behind calls of many rows."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.system.deadlines import DEADLINES
from rrt_edge.runtime.system.onnxruntime import first_line, onnxruntime

MANY_ROWS = 32  # the memory that calls of so many compute with is given back by the next one of fewer
STEP_SECONDS = 600.0  # that a call may take: no step of a model that can be used does
FATAL = 4  # onnxruntime's log level
GRAPH_ID = "gpu_graph_id"  # looked for at each call; not to find it costs 0.05 ms


class CPUCalls:
    """The calls of one caller at a time."""

    def __init__(self, path: Path) -> None:
        """`path`: of the graph, which errors name."""
        self.step_seconds = STEP_SECONDS
        self._path, self._many_before = path, False
        self._plain, self._giving_back = onnxruntime.RunOptions(), onnxruntime.RunOptions()
        for options in (self._plain, self._giving_back):
            options.log_severity_level = FATAL  # what fails is raised, and told once
            options.add_run_config_entry(GRAPH_ID, "0")
        self._giving_back.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, session: onnxruntime.InferenceSession, binding: onnxruntime.IOBinding, rows: int) -> None:
        """Run what is bound, so many rows.

        Raises:
            RRTEdgeError: onnxruntime failed, or took longer than a step may.
        """
        many = rows >= MANY_ROWS
        done_with_many, self._many_before = self._many_before and not many, many
        options = self._giving_back if done_with_many else self._plain
        try:
            call = partial(session.run_with_iobinding, binding)
            ended_well = DEADLINES.run(call, options, self.step_seconds)
        except Exception as error:  # onnxruntime raises several unrelated types
            raise RRTEdgeError(f"onnxruntime failed while running the model: {first_line(error)}") from error
        if not ended_well:
            raise RRTEdgeError(f"{self._path}: a step took longer than {self.step_seconds:g} s and was ended")
