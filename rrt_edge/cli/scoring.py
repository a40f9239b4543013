"""`eval` and `calibrate`: how good each depth is, and which thresholds keep a promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console

from rrt_edge.cli.common import BundlePath, guarded, json_option, print_json, quiet_transformers
from rrt_edge.runtime.decoding.exit_policy import POINTS
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rrt_edge.runtime import Model
    from rrt_edge.runtime.scoring.bundle_scores import Example
    from rrt_edge.runtime.scoring.metrics import Scores


@click.command("eval", epilog="Example: rrt-edge eval bundle --data heldout.jsonl")
@click.argument("model", type=BundlePath())
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Chats or text: .jsonl, .parquet, .txt.")
@click.option("--threshold", "thresholds", type=float, multiple=True, help="Score this threshold too; may be repeated.")
@click.option("--max-length", default=1024, show_default=True, help="Tokens a text is cut to.")
@json_option
@guarded
def evaluate(model: Path, data: Path, thresholds: tuple[float, ...], max_length: int, as_json: bool) -> None:
    """Score a bundle or a recursive checkpoint on a known text: every depth, and every operating point it has.

    Perplexity, likeliest tokens and exact answers are of what the assistant says in chats, or of all of a text;
    agreement is with full depth. Each token is scored behind the right ones, under the KV rule exact.
    """
    from rrt_edge.cli.terminal import scores_table

    scores, points = _scores(model, data, max_length)
    rows = {f"depth={depth}": scores.at_depth(depth) for depth in range(1, scores.depths + 1)}
    for name, threshold in {**points, **{f"threshold={value:g}": value for value in thresholds}}.items():
        rows[name] = scores.at_threshold(threshold)
    reliability = scores.reliability() if scores.depths > 1 else None
    if as_json:
        found = {name: dataclasses.asdict(score) for name, score in rows.items()}
        gate = None if reliability is None else dataclasses.asdict(reliability)
        return print_json({"tokens": scores.tokens, "scores": found, "gate": gate})
    return Console().print(scores_table(str(model), rows, scores.tokens, reliability))


def _scores(model: Path, data: Path, max_length: int) -> tuple[Scores, dict[str, float]]:
    """The scores of a bundle or checkpoint, and its operating points."""
    if (model / "manifest.json").is_file():
        from rrt_edge.runtime import Model

        with Model.load(model, device="cpu") as loaded:
            gate = loaded.manifest.gate
            calibrated = {} if gate.threshold is None else {"threshold": gate.threshold}
            return _bundle_scores(loaded, data, max_length)[0], {**calibrated, **gate.points}
    quiet_transformers()
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rrt_edge.conversion.checkpoint import Checkpoint
    from rrt_edge.training.data import read_examples as read
    from rrt_edge.training.evaluation import score_checkpoint

    checkpoint = Checkpoint(model)
    if not checkpoint.is_recursive:
        raise BadInputError(f"{model}: not a recursive checkpoint; convert it first (--loops 1 shares nothing)")
    texts = read(data, AutoTokenizer.from_pretrained(model), max_length)
    torch_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    threshold = checkpoint.config.exit_threshold
    return score_checkpoint(torch_model, texts), {} if threshold is None else {"threshold": threshold}


def _bundle_scores(model: Model, data: Path, max_length: int) -> tuple[Scores, list[Example]]:
    """The scores of a bundle, and the texts they are of."""
    from rrt_edge.runtime.scoring.bundle_scores import read_examples, score_bundle

    examples = read_examples(model, data, min(max_length, model.context))
    return score_bundle(model.runner, examples), examples


@click.command(epilog="Example: rrt-edge calibrate bundle --data calibrate.jsonl --agreement 0.99 --name balanced")
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
@click.option("--max-length", default=1024, show_default=True, help="Tokens a text is cut to.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write the curve and the gate's reliability as a PNG.")
@json_option
@guarded
def calibrate(
    bundle: Path, data: Path, agreement: float | None, name: str | None, confidence: float, max_length: int,
    plot: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Find the thresholds that keep a promise of agreement with full depth, and write them into the bundle.

    The speed shown is measured here, as if tokens that left were never caught up (see docs/engine.md).
    `--exit-policy balanced`, and so on, then leaves by them. Use text of the kind that the model will meet, which it
    was not trained on: 5,000 tokens or more for a promise of 99.9 %.
    """
    from rrt_edge.cli.terminal import calibration_table
    from rrt_edge.runtime import Model
    from rrt_edge.runtime.bundle.manifest import Manifest
    from rrt_edge.runtime.scoring.calibration import calibrate as run
    from rrt_edge.runtime.scoring.calibration import depth_seconds, speed_up
    from rrt_edge.runtime.scoring.metrics import curve

    wanted = _points(agreement, name)
    manifest = Manifest.read(bundle)
    if manifest.gate.kind == "none":
        raise BadInputError(f"{bundle}: has one loop, so no token can leave early")
    with Model.load(bundle, device="cpu") as model:
        scores, examples = _bundle_scores(model, data, max_length)
        seconds = depth_seconds(model.runner, max((example.ids for example in examples), key=len)[:64])
    points = curve(scores)
    found = {point: run(scores, promised, confidence, points) for point, promised in wanted.items()}
    kept = {point: one.threshold for point, one in found.items() if one.threshold is not None}
    others = {point: value for point, value in manifest.gate.points.items() if point not in wanted}
    threshold = kept.get("balanced", manifest.gate.threshold)
    gate = dataclasses.replace(manifest.gate, points={**others, **kept}, threshold=threshold)
    dataclasses.replace(manifest, gate=gate).write(bundle)
    if plot is not None:
        from rrt_edge.training.plots import plot_calibration

        plot_calibration(points, scores.reliability(), plot)
    if as_json:
        told = {point: dataclasses.asdict(one) for point, one in found.items()}
        along = [dataclasses.asdict(point) for point in points]
        for row in (*told.values(), *along):
            row["speed_up"] = speed_up(scores, row["threshold"], seconds)
        return print_json({"points": told, "curve": along})
    thresholds = [*(one.threshold for one in found.values()), *(point.threshold for point in points)]
    speeds = {threshold: speed_up(scores, threshold, seconds) for threshold in thresholds}
    return Console().print(calibration_table(str(bundle), found, points, speeds, manifest.architecture.loops))


def _points(agreement: float | None, name: str | None) -> dict[str, float]:
    """The operating points to find, and what each promises."""
    if agreement is None and name is None:
        return dict(POINTS)
    if agreement is None and name not in POINTS:
        raise BadInputError(f"name {name!r}: say what it promises with --agreement, or choose from {', '.join(POINTS)}")
    label = name or f"{agreement:g}"
    if label in ("full", "lossless", "threshold", "depth") or "=" in label:
        raise BadInputError(f"name {label!r}: is an exit policy already")
    return {label: POINTS[label] if agreement is None else agreement}
