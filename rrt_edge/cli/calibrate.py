"""`calibrate`: which thresholds keep a promise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console, Group
from rich.table import Table

from rrt_edge.cli.common import BundlePath, guarded, json_option, print_json
from rrt_edge.cli.eval import bundle_scores
from rrt_edge.cli.help import BUNDLE, command
from rrt_edge.cli.terminal import progress_bar
from rrt_edge.runtime.decoding.exit_policy import NAMES, POINTS
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.scoring.corpus import check_kind

if TYPE_CHECKING:
    from rrt_edge.runtime.scoring.calibration import Calibrated
    from rrt_edge.runtime.scoring.metrics import Point


@command(
    reads=(BUNDLE,), epilog="Example: rrt-edge calibrate bundle --data calibrate.jsonl --agreement 0.99 --name balanced"
)
@click.argument("bundle", type=BundlePath())
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="Chats or text the model was not trained on."
)
@click.option("--agreement", type=float, help="Share of tokens that must be full depth's.  [default: by the name]")
@click.option(
    "--name", help="Of the operating point: fast (95 %), balanced (99 %), faithful (99.9 %), or your own with "
    "--agreement.  [default: these three]",
)  # fmt: skip
@click.option("--confidence", default=0.95, show_default=True, help="That the promise holds.")
@click.option(
    "--max-length", type=click.IntRange(min=2), default=1024, show_default=True, help="Tokens a text is cut to."
)
@click.option("--plot", type=click.Path(path_type=Path), help="Write the curve and the gate's reliability as a PNG.")
@json_option
@guarded
def calibrate(
    bundle: Path, data: Path, agreement: float | None, name: str | None, confidence: float, max_length: int,
    plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Find the thresholds that keep a promise of agreement with full depth, and write them into the bundle, with the
    loops that a token runs at each.

    The speed shown is measured here, as if tokens that left were never caught up (see docs/engine.md).
    `--exit-policy balanced`, and so on, then leaves by them. Use text of the kind that the model will meet, which it
    was not trained on: 5,000 tokens or more for a promise of 99.9 %.
    """
    promises = _points(agreement, name)
    from rrt_edge.runtime import Model
    from rrt_edge.runtime.bundle.exit_curve import CurvePoint, thinned
    from rrt_edge.runtime.bundle.manifest import Manifest
    from rrt_edge.runtime.loaded import insides
    from rrt_edge.runtime.scoring.calibration import calibrate as run
    from rrt_edge.runtime.scoring.calibration import check_promise, depth_costs, speed_up
    from rrt_edge.runtime.scoring.metrics import curve

    for promised in promises.values():
        check_promise(promised, confidence)
    check_kind(data)
    manifest = Manifest.read(bundle)
    if manifest.gate.kind == "none":
        why = "has one loop" if manifest.architecture.loops == 1 else "has no exit gate"
        raise BadInputError(f"{bundle}: {why}, so no token can leave early")
    with Model.load(bundle, device="cpu") as model, progress_bar(Console(stderr=True), not as_json) as progress:
        scores, examples = bundle_scores(model, data, max_length, progress)
        costs = depth_costs(insides(model).runner, max((example.ids for example in examples), key=len)[:64])
    points = curve(scores)
    results = {point: run(scores, promised, confidence, points) for point, promised in promises.items()}
    kept = {point: result.threshold for point, result in results.items() if result.threshold is not None}

    def with_points(now: Manifest) -> Manifest:
        others = {point: value for point, value in now.gate.points.items() if point not in promises}
        threshold = kept.get("balanced", now.gate.threshold)
        named = {**others, **kept}
        curve_points = [CurvePoint(point.threshold, point.agreement, point.mean_depth) for point in points]
        along = thinned(curve_points, named={*named.values(), threshold})
        gate = dataclasses.replace(now.gate, points=named, threshold=threshold, curve=along)
        return dataclasses.replace(now, gate=gate)

    manifest.update(bundle, with_points)
    if plot is not None:
        from rrt_edge.training.plots import plot_calibration

        plot_calibration(points, scores.reliability(), plot)
    if as_json:
        payload = {point: dataclasses.asdict(result) for point, result in results.items()}
        along = [dataclasses.asdict(point) for point in points]
        for row in (*payload.values(), *along):
            row["speed_up"] = speed_up(scores, row["threshold"], costs)
        return print_json({"points": payload, "curve": along})
    thresholds = [*(result.threshold for result in results.values()), *(point.threshold for point in points)]
    speeds = {threshold: speed_up(scores, threshold, costs) for threshold in thresholds}
    Console().print(calibration_table(str(bundle), results, points, speeds, manifest.architecture.loops))
    for result in results.values():
        if result.threshold is None:
            click.echo(_unkept(result, points[0].agreement))
    return None


def _unkept(result: Calibrated, highest: float) -> str:
    """Why a promise is kept by no threshold, and what would help; `highest`: the agreement at the highest one."""
    promise = f"{100 * result.promised:g} %"
    if result.tokens_needed is None:
        return f"no threshold keeps {promise}: at the highest, {100 * highest:.4g} % of the tokens are full depth's"
    return f"it needs about {result.tokens_needed:,} tokens to promise {promise}; this text has {result.tokens:,}"


def _points(agreement: float | None, name: str | None) -> dict[str, float]:
    """The operating points to find, and what each promises."""
    if agreement is None and name is None:
        return dict(POINTS)
    if agreement is None and name not in POINTS:
        raise BadInputError(f"name {name!r}: say what it promises with --agreement, or choose from {', '.join(POINTS)}")
    label = name or f"{agreement:g}"
    if label in NAMES or "=" in label:
        raise BadInputError(f"name {label!r}: is an exit policy already")
    return {label: POINTS[label] if agreement is None else agreement}


BAR = 30  # characters of the fastest test's bar


def calibration_table(
    bundle: str,
    results: Mapping[str, Calibrated],
    curve: Sequence[Point],
    speeds: Mapping[float | None, float],
    loops: int,
) -> Group:
    """The operating points, and the curve they lie on; speeds by threshold, beside full depth."""
    first = next(iter(results.values()))
    title = f"{bundle}: operating points from {first.tokens:,} tokens, at {100 * first.confidence:g}% confidence"
    table = Table(title=title, title_justify="left")
    for name in ("", "promise", "threshold", "as full depth", "mean depth", "speed up to"):
        table.add_column(name, justify="right" if name else "left", no_wrap=name in ("", "threshold"))
    for name, result in results.items():
        threshold = "none" if result.threshold is None else f"{result.threshold:.8f}"
        row = (f"{100 * result.promised:g}%", threshold, f"{result.agreement:.2%}")
        table.add_row(name, *row, f"{result.mean_depth:.3f}", f"{speeds[result.threshold]:.2f} x")
    title = "by threshold: as full depth, speed, mean depth"
    lines = Table(title=title, title_justify="left", show_header=False, box=None)
    depths = [curve[0].mean_depth + step / 10 * (curve[-1].mean_depth - curve[0].mean_depth) for step in range(11)]
    nearest = [min(curve, key=lambda point: abs(point.mean_depth - depth)) for depth in depths]
    for point in dict.fromkeys(nearest):
        bar = "█" * round(BAR * point.mean_depth / loops)
        speed = f"{speeds[point.threshold]:.2f} x"
        lines.add_row(f"{point.threshold:.8f}", f"{point.agreement:.2%}", speed, f"{point.mean_depth:.2f} {bar}")
    return Group(table, lines)
