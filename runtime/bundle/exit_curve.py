"""What calibration found: how deep tokens go at each threshold, and how many of them are full depth's."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from rrt_edge.runtime.bundle.manifest_reader import Fields

MOST_POINTS = 100


@dataclass(frozen=True)
class CurvePoint:
    """A threshold, the share of tokens that are full depth's at it, and the loops that a token runs on average."""

    threshold: float
    agreement: float
    mean_depth: float


def read_curve(fields: Fields, loops: int) -> tuple[CurvePoint, ...]:
    """The `curve` of a manifest's gate.

    Raises:
        BundleError: it is not a list of points within bounds.
    """
    points = fields.get("curve", [])
    if (
        not isinstance(points, list)
        or len(points) > MOST_POINTS
        or not all(_is_point(point, loops) for point in points)
    ):
        raise fields.fail("gate.curve", f"must be up to {MOST_POINTS} thresholds with their agreement and mean depth")
    return tuple(CurvePoint(point["threshold"], point["agreement"], point["mean_depth"]) for point in points)


def thinned(
    points: Iterable[CurvePoint], most: int = 33, named: Collection[float | None] = ()
) -> tuple[CurvePoint, ...]:
    """About evenly spaced points of a curve, by their mean depth; of points at one mean depth the one that agrees most.

    Args:
        most: how many of these there may be.
        named: thresholds whose points are kept beside them.
    """
    points = list(points)
    kept = [point for point in points if point.threshold in named]
    spaced = _spaced([point for point in points if point.threshold not in named], most)
    return tuple(sorted({*kept, *spaced}, key=lambda point: (point.mean_depth, point.threshold)))


def _spaced(points: Iterable[CurvePoint], most: int) -> list[CurvePoint]:
    best: dict[float, CurvePoint] = {}
    for point in points:
        known = best.get(point.mean_depth)
        if known is None or point.agreement > known.agreement:
            best[point.mean_depth] = point
    depths = sorted(best)
    if len(depths) <= most:
        return [best[depth] for depth in depths]
    wanted = [depths[0] + step * (depths[-1] - depths[0]) / (most - 1) for step in range(most)]
    nearest = {min(depths, key=lambda depth: abs(depth - place)) for place in wanted}
    return [best[depth] for depth in nearest]


def _is_point(point: Any, loops: int) -> bool:
    bounds = {"threshold": (0, 1), "agreement": (0, 1), "mean_depth": (1, loops)}
    return (
        isinstance(point, dict)
        and point.keys() == bounds.keys()
        and all(
            type(point[name]) in (int, float) and low <= point[name] <= high for name, (low, high) in bounds.items()
        )
    )
