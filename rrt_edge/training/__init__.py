"""Uptraining, early-exit training and the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rrt_edge.runtime.system.lazy import lazy_names

if TYPE_CHECKING:
    from rrt_edge.training.options import TrainOptions
    from rrt_edge.training.training import TrainReport, train

__all__ = ["TrainOptions", "TrainReport", "train"]

_HOMES = {
    "TrainOptions": "rrt_edge.training.options",
    "TrainReport": "rrt_edge.training.training",
    "train": "rrt_edge.training.training",
}

__getattr__ = lazy_names(__name__, _HOMES)
