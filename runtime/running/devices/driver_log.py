"""Complaints of a GPU's driver: some failures reach nobody but onnxruntime's logger.

A tensor that found no memory is made all the same, and computes nonsense.
"""

from __future__ import annotations

import logging
from functools import cache

from rrt_edge.runtime.system.onnxruntime import ERRORS_ONLY, onnxruntime

SIGN = "WebGPU device error"
log = logging.getLogger(__name__)
_heard: list[str] = []


@cache
def hear_complaints() -> None:
    """Listen to onnxruntime's logger from now on, which has one listener in a process."""
    listen = getattr(onnxruntime, "set_default_logger_callback", None)
    if listen is None:  # an older onnxruntime
        onnxruntime.set_default_logger_severity(ERRORS_ONLY)
    else:
        listen(_hear, ERRORS_ONLY)


def _hear(severity: int, category: str, logger: str, place: str, message: str) -> None:
    if SIGN in message:
        _heard.append(" ".join(message.split()))
    log.debug("onnxruntime: %s", message)


def complaint() -> str | None:
    """The first complaint since the last call; what followed is its consequence."""
    first = _heard[0] if _heard else None
    _heard.clear()
    return first
