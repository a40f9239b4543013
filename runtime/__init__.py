"""Run bundles with onnxruntime: no torch, no transformers.

    from rrt_edge.runtime import Model
    with Model.load("bundle") as model:
        for token in model.stream("Once upon a time", exit_policy="threshold=0.9"):
            print(token.text, end="", flush=True)

onnxruntime is imported when a name that needs it is first used, its telemetry turned off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrt_edge.runtime.errors import (
    BadInputError,
    BundleError,
    ContextFullError,
    DeviceError,
    MissingExtraError,
    OutOfMemoryError,
    RRTEdgeError,
)
from rrt_edge.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from rrt_edge.runtime.devices import Device, find_devices
    from rrt_edge.runtime.engine import Engine, Request
    from rrt_edge.runtime.grammar import Grammar
    from rrt_edge.runtime.manifest import Manifest
    from rrt_edge.runtime.model import Model
    from rrt_edge.runtime.policy import ExitPolicy
    from rrt_edge.runtime.reply import Generation, Stats, Token
    from rrt_edge.runtime.sampling import Sampling
    from rrt_edge.runtime.session import Session
    from rrt_edge.runtime.stream import Stream

__all__ = [
    "BadInputError",
    "BundleError",
    "ContextFullError",
    "Device",
    "DeviceError",
    "Engine",
    "ExitPolicy",
    "Generation",
    "Grammar",
    "Manifest",
    "MissingExtraError",
    "Model",
    "OutOfMemoryError",
    "RRTEdgeError",
    "Request",
    "Sampling",
    "Session",
    "Stats",
    "Stream",
    "Token",
    "find_devices",
]

_HOMES = {
    "Device": "rrt_edge.runtime.devices",
    "find_devices": "rrt_edge.runtime.devices",
    "Engine": "rrt_edge.runtime.engine",
    "Request": "rrt_edge.runtime.engine",
    "Manifest": "rrt_edge.runtime.manifest",
    "Generation": "rrt_edge.runtime.reply",
    "Model": "rrt_edge.runtime.model",
    "Session": "rrt_edge.runtime.session",
    "Stream": "rrt_edge.runtime.stream",
    "Grammar": "rrt_edge.runtime.grammar",
    "Stats": "rrt_edge.runtime.reply",
    "Token": "rrt_edge.runtime.reply",
    "ExitPolicy": "rrt_edge.runtime.policy",
    "Sampling": "rrt_edge.runtime.sampling",
}

__getattr__ = lazy_names(__name__, _HOMES)
