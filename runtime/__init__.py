"""Run bundles with onnxruntime: no torch, no transformers.

    from rrt_edge.runtime import Model
    with Model.load("bundle") as model:
        for token in model.stream("What does os.path.join do?", max_tokens=50):
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
from rrt_edge.runtime.system.lazy import lazy_names

if TYPE_CHECKING:
    from rrt_edge.runtime.bundle.manifest import Manifest
    from rrt_edge.runtime.bundle.messages import Message
    from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
    from rrt_edge.runtime.decoding.grammar import Grammar
    from rrt_edge.runtime.decoding.reply import Generation, Stats, Token
    from rrt_edge.runtime.decoding.sampling import Sampling
    from rrt_edge.runtime.engine import Engine
    from rrt_edge.runtime.interfaces import Prompt, ReplyOptions, Request, SamplingFields, Stream, TextModel
    from rrt_edge.runtime.model import Model
    from rrt_edge.runtime.running.devices.finding import Device, find_devices
    from rrt_edge.runtime.session import Session

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
    "Message",
    "MissingExtraError",
    "Model",
    "OutOfMemoryError",
    "Prompt",
    "RRTEdgeError",
    "ReplyOptions",
    "Request",
    "Sampling",
    "SamplingFields",
    "Session",
    "Stats",
    "Stream",
    "TextModel",
    "Token",
    "find_devices",
]

_HOMES = {
    **dict.fromkeys(
        ("Prompt", "ReplyOptions", "Request", "SamplingFields", "Stream", "TextModel"), "rrt_edge.runtime.interfaces"
    ),
    "Message": "rrt_edge.runtime.bundle.messages",
    "Device": "rrt_edge.runtime.running.devices.finding",
    "find_devices": "rrt_edge.runtime.running.devices.finding",
    "Engine": "rrt_edge.runtime.engine",
    "Manifest": "rrt_edge.runtime.bundle.manifest",
    "Generation": "rrt_edge.runtime.decoding.reply",
    "Model": "rrt_edge.runtime.model",
    "Session": "rrt_edge.runtime.session",
    "Grammar": "rrt_edge.runtime.decoding.grammar",
    "Stats": "rrt_edge.runtime.decoding.reply",
    "Token": "rrt_edge.runtime.decoding.reply",
    "ExitPolicy": "rrt_edge.runtime.decoding.exit_policy",
    "Sampling": "rrt_edge.runtime.decoding.sampling",
}

__getattr__ = lazy_names(__name__, _HOMES)
