"""A picture of how training went: losses by stage, and what evaluation found of each depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Log = Sequence[Mapping[str, float]]  # the Trainer's


def plot_training(logs: Mapping[str, Log], path: Path) -> bool:
    """Write a PNG; nothing where matplotlib is not installed, or there is nothing to show. Returns whether it did."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {"loss": {}, "perplexity": {}, "agreement": {}}
    start = 0.0
    for stage, log in logs.items():
        for row in log:
            for key, value in row.items():
                kind, _, depth = key.removeprefix("eval_").partition("_")
                if key == "loss":
                    curves["loss"].setdefault(stage, []).append((start + row["step"], value))
                elif key.startswith("eval_") and kind in curves:
                    curves[kind].setdefault(f"depth {depth}", []).append((start + row["step"], value))
        start += max((row.get("step", 0) for row in log), default=0)
    shown = {kind: lines for kind, lines in curves.items() if lines}
    if not shown:
        return False
    figure = Figure(figsize=(5 * len(shown), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (kind, lines) in enumerate(shown.items(), 1):
        axes: Any = figure.add_subplot(1, len(shown), index)
        for label, points in lines.items():
            axes.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        axes.set_xlabel("step")
        axes.set_title(kind)
        axes.set_yscale("linear" if kind == "agreement" else "log")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)
    return True
