"""Relaxed Recursive Transformers for the edge: convert, train, export, run.

Importing this package registers recursive checkpoints with transformers' Auto classes, so that
`AutoModelForCausalLM.from_pretrained` loads them. torch and transformers are imported only where something asks for
them: `rrt_edge.runtime` works without.
"""

from __future__ import annotations

import rrt_edge.ctrl_c  # isort: skip - before anything takes time
from pathlib import Path
from typing import TYPE_CHECKING

_checkout = Path(__file__).resolve().parent.parent
if not (Path(__file__).parent / "runtime").is_dir() and (_checkout / "runtime" / "model.py").is_file():
    # Imported from a checkout's root, where the folders that install as parts of this package stand beside it.
    __path__ += [str(_checkout), str(_checkout / "samples")]

import rrt_edge.runtime.system.openmp  # noqa: F401 - before anything loads torch
from rrt_edge.model.registration import register
from rrt_edge.runtime.errors import BadInputError, BundleError, RRTEdgeError
from rrt_edge.runtime.system.lazy import lazy_names
from rrt_edge.runtime.system.version import __version__ as __version__

if TYPE_CHECKING:
    from rrt_edge.conversion.conversion import convert
    from rrt_edge.exporters import export, verify
    from rrt_edge.model.configuration import RecursiveConfig
    from rrt_edge.model.modeling import RecursiveForCausalLM
    from rrt_edge.training.training import train

__all__ = [
    "BadInputError",
    "BundleError",
    "RRTEdgeError",
    "RecursiveConfig",
    "RecursiveForCausalLM",
    "convert",
    "export",
    "train",
    "verify",
]

_HOMES = {
    "RecursiveConfig": "rrt_edge.model.configuration",
    "RecursiveForCausalLM": "rrt_edge.model.modeling",
    "convert": "rrt_edge.conversion.conversion",
    "train": "rrt_edge.training.training",
    "export": "rrt_edge.exporters",
    "verify": "rrt_edge.exporters",
}

__getattr__ = lazy_names(__name__, _HOMES)

register()
