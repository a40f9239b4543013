"""onnxruntime, imported with its telemetry turned off, and what all that run it need."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by onnxruntime at its first call

import onnxruntime

from rrt_edge.runtime.system.machine import default_threads

ERRORS_ONLY = 3  # onnxruntime's log level
CPU = "CPUExecutionProvider"
SPIN_MICROSECONDS = 1000  # that a thread of a session looks for work before it sleeps: longer than from token to token

__all__ = ["CPU", "ERRORS_ONLY", "SPIN_MICROSECONDS", "first_line", "onnxruntime", "session_options"]


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Options of a session that only speaks of errors.

    Args:
        threads: how many compute; by default `machine.default_threads`. Where that does not say, onnxruntime starts
            one for each physical core.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads or default_threads() or 0
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    return options


def first_line(error: BaseException) -> str:
    """Return what an exception of onnxruntime says, which raises several unrelated types, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
