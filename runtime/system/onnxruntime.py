"""onnxruntime, imported with its telemetry turned off, and what all that run it need."""

from __future__ import annotations

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read by onnxruntime at its first call

import onnxruntime

ERRORS_ONLY = 3  # onnxruntime's log level
CPU = "CPUExecutionProvider"

__all__ = ["CPU", "ERRORS_ONLY", "first_line", "onnxruntime", "session_options"]


def session_options(threads: int | None = None) -> onnxruntime.SessionOptions:
    """Options of a session that only speaks of errors; `threads`: one for each core by default."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    if threads is not None:
        options.intra_op_num_threads = threads
    return options


def first_line(error: Exception) -> str:
    """Return what an exception of onnxruntime says, which raises several unrelated types, on one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
