"""From a pretrained checkpoint to a recursive one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrt_edge.runtime.system.lazy import lazy_names

if TYPE_CHECKING:
    from rrt_edge.conversion.adapters import Kept, OutputError
    from rrt_edge.conversion.conversion import ConvertReport, Parameters, convert

__all__ = ["ConvertReport", "Kept", "OutputError", "Parameters", "convert"]

_HOMES = {
    "ConvertReport": "rrt_edge.conversion.conversion",
    "Kept": "rrt_edge.conversion.adapters",
    "OutputError": "rrt_edge.conversion.adapters",
    "Parameters": "rrt_edge.conversion.conversion",
    "convert": "rrt_edge.conversion.conversion",
}

__getattr__ = lazy_names(__name__, _HOMES)
