"""Pictures: how training went, and what a gate's thresholds give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rrt_edge.runtime.scoring.metrics import Point, Reliability

Log = Sequence[Mapping[str, float]]  # the Trainer's


def plot_training(logs: Mapping[str, Log], path: Path) -> bool:
    """Write a PNG of the losses, those of each stage on a scale of their own, and of the evaluations of all stages.

    Writes nothing where matplotlib is not installed, or there is nothing to show. Returns whether it did.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    losses: dict[str, dict[str, list[tuple[float, float]]]] = {f"loss, {stage}": {} for stage in logs}
    scores: dict[str, dict[str, list[tuple[float, float]]]] = {"perplexity": {}, "agreement": {}}
    start, ends = 0.0, []
    for stage, log in logs.items():
        for row in log:
            for key, value in row.items():
                kind, _, depth = key.removeprefix("eval_").partition("_")
                if key == "loss":
                    losses[f"loss, {stage}"].setdefault(stage, []).append((row["step"], value))
                elif key.startswith("eval_") and kind in scores:
                    scores[kind].setdefault(f"depth {depth}", []).append((start + row["step"], value))
        start += max((row.get("step", 0) for row in log), default=0)
        ends.append(start)
    shown = {title: lines for title, lines in {**losses, **scores}.items() if lines}
    if not shown:
        return False
    figure = Figure(figsize=(5 * len(shown), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, lines) in enumerate(shown.items(), 1):
        axes: Any = figure.add_subplot(1, len(shown), index)
        for label, points in lines.items():
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        axes.set_xlabel("step")
        axes.set_title(title)
        axes.set_yscale("linear" if title == "agreement" else "log")
        axes.grid(alpha=0.3)
        if title in scores:
            axes.legend()
            for end in ends[:-1]:  # where the next stage begins
                axes.axvline(end, color="gray", linestyle=":")
    figure.savefig(path, dpi=110)
    return True


def plot_calibration(curve: Sequence[Point], reliability: Reliability, path: Path) -> None:
    """Write a PNG of agreement by mean depth, and of how often tokens agree at each of the gate's values.

    Raises:
        BadInputError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BadInputError("a plot needs matplotlib: pip install 'rrt-edge[train]'") from error
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    left: Any = figure.add_subplot(1, 2, 1)
    left.plot([point.mean_depth for point in curve], [point.agreement for point in curve], marker=".")
    left.set_xlabel("mean depth")
    left.set_title("agreement with full depth")
    right: Any = figure.add_subplot(1, 2, 2)
    right.plot([0, 1], [0, 1], linestyle="--", color="gray")
    gates, true, counts = zip(*reliability.bins, strict=True)
    right.scatter(gates, true, s=[20 + 200 * count / sum(counts) for count in counts])
    right.set_xlabel("gate")
    right.set_title(f"share that agrees (error {reliability.expected_error:.3f})")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path}: the plot cannot be written ({error})") from error
