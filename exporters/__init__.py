"""Turn checkpoints into bundles, and check bundles against their source."""

from rrt_edge.exporters.bundle import ExportReport, export
from rrt_edge.exporters.verification import verify
from rrt_edge.runtime.check import Tolerance, VerifyReport

__all__ = ["ExportReport", "Tolerance", "VerifyReport", "export", "verify"]
