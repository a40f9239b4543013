"""Turn checkpoints into bundles, and check bundles against their source."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrt_edge.runtime.system.lazy import lazy_names

if TYPE_CHECKING:
    from rrt_edge.exporters.bundle import ExportReport, export
    from rrt_edge.exporters.verification import verify
    from rrt_edge.runtime.check import Tolerance, VerifyReport

__all__ = ["ExportReport", "Tolerance", "VerifyReport", "export", "verify"]

_HOMES = {
    "ExportReport": "rrt_edge.exporters.bundle",
    "Tolerance": "rrt_edge.runtime.check",
    "VerifyReport": "rrt_edge.runtime.check",
    "export": "rrt_edge.exporters.bundle",
    "verify": "rrt_edge.exporters.verification",
}

__getattr__ = lazy_names(__name__, _HOMES)
