"""Run bundles with onnxruntime: no torch, no transformers.

    from rrt_edge.runtime import Model
    with Model.load("bundle") as model:
        for token in model.stream("Once upon a time", exit_policy="threshold=0.9"):
            print(token.text, end="", flush=True)

onnxruntime is imported when a name that needs it is first used, its telemetry turned off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrt_edge.runtime.errors import BadInputError, BundleError, ContextFullError, RRTEdgeError
from rrt_edge.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from rrt_edge.runtime.manifest import Manifest
    from rrt_edge.runtime.model import Generation, Model, Session, Stats, Token
    from rrt_edge.runtime.policy import ExitPolicy
    from rrt_edge.runtime.sampling import Sampling

__all__ = [
    "BadInputError",
    "BundleError",
    "ContextFullError",
    "ExitPolicy",
    "Generation",
    "Manifest",
    "Model",
    "RRTEdgeError",
    "Sampling",
    "Session",
    "Stats",
    "Token",
]

_HOMES = {
    "Manifest": "rrt_edge.runtime.manifest",
    "Generation": "rrt_edge.runtime.model",
    "Model": "rrt_edge.runtime.model",
    "Session": "rrt_edge.runtime.model",
    "Stats": "rrt_edge.runtime.model",
    "Token": "rrt_edge.runtime.model",
    "ExitPolicy": "rrt_edge.runtime.policy",
    "Sampling": "rrt_edge.runtime.sampling",
}

__getattr__ = lazy_names(__name__, _HOMES)
