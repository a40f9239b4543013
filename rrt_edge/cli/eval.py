"""`eval`: how good each depth is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from rrt_edge.cli.common import BundlePath, guarded, json_option, print_json, quiet_transformers
from rrt_edge.cli.help import BUNDLE, RECURSIVE_CHECKPOINT, command
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.terminal import progress_bar
from rrt_edge.conversion.folder import check_recursive
from rrt_edge.runtime.scoring.corpus import check_kind
from rrt_edge.runtime.system.progress import Progress, counted

if TYPE_CHECKING:
    from rrt_edge.runtime import Model
    from rrt_edge.runtime.decoding.exit_policy import Exits
    from rrt_edge.runtime.scoring.examples import Example
    from rrt_edge.runtime.scoring.metrics import Reliability, Score, Scores

SCORED = "texts scored"


@command("eval", reads=(BUNDLE, RECURSIVE_CHECKPOINT), epilog="Example: rrt-edge eval bundle --data heldout.jsonl")
@click.argument("model", type=BundlePath())
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Chats or text: .jsonl, .parquet, .txt.")
@click.option("--threshold", "thresholds", type=float, multiple=True, help="Score this threshold too; may be repeated.")
@click.option(
    "--max-length", type=click.IntRange(min=2), default=1024, show_default=True, help="Tokens a text is cut to."
)
@json_option
@guarded
def evaluate(model: Path, data: Path, thresholds: tuple[float, ...], max_length: int, as_json: bool) -> None:
    """Score a bundle or a recursive checkpoint on a known text: every depth, and every operating point it has.

    Perplexity, likeliest tokens and exact answers are of what the assistant says in chats, or of all of a text;
    agreement is with full depth. Each token is scored behind the right ones, under the KV rule exact.
    """

    with progress_bar(Console(stderr=True), not as_json) as progress:
        scores, exits = _scores(model, data, max_length, progress)
    if thresholds:
        exits.check_leaving()
    rows = {f"depth={depth}": scores.at_depth(depth) for depth in exits.readable}
    points = {} if exits.calibrated is None else {"threshold": exits.calibrated}
    points |= exits.points
    for name, threshold in {**points, **{f"threshold={value:g}": value for value in thresholds}}.items():
        rows[name] = scores.at_threshold(threshold)
    reliability = scores.reliability() if scores.depths > 1 and exits.has_gate else None
    if as_json:
        payload = {name: dataclasses.asdict(score) for name, score in rows.items()}
        gate = None if reliability is None else dataclasses.asdict(reliability)
        return print_json({"tokens": scores.tokens, "scores": payload, "gate": gate})
    return Console().print(scores_table(str(model), rows, scores.tokens, reliability))


def _scores(model: Path, data: Path, max_length: int, progress: Progress | None) -> tuple[Scores, Exits]:
    """The scores of a bundle or checkpoint, and where its tokens may leave."""
    check_kind(data)
    if (model / "manifest.json").is_file():
        from rrt_edge.runtime import Model
        from rrt_edge.runtime.loaded import insides

        with Model.load(model, device="cpu") as loaded:
            return bundle_scores(loaded, data, max_length, progress)[0], insides(loaded).exits
    fields = check_recursive(model)
    with importing():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from rrt_edge.model.text import read_examples as read
        from rrt_edge.runtime.decoding.exit_policy import Exits
        from rrt_edge.training.evaluation import score_checkpoint

        quiet_transformers()
    texts = read(data, AutoTokenizer.from_pretrained(model), max_length)
    torch_model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    scores = score_checkpoint(torch_model, counted(texts, progress, SCORED))
    depths, has_gate = tuple(fields.get("exits") or ()), fields.get("gate_kind") != "none"
    return scores, Exits(scores.depths, fields.get("exit_threshold"), fields.get("exit_points") or {}, depths, has_gate)


def bundle_scores(model: Model, data: Path, max_length: int, progress: Progress | None) -> tuple[Scores, list[Example]]:
    """The scores of a bundle, and the texts they are of."""
    from rrt_edge.runtime.loaded import insides
    from rrt_edge.runtime.scoring.bundle_scores import read_examples, score_bundle

    examples = read_examples(model, data, min(max_length, model.context))
    return score_bundle(insides(model).runner, counted(examples, progress, SCORED)), examples


def scores_table(model: str, rows: Mapping[str, Score], tokens: int, reliability: Reliability | None) -> Table:
    """A row for each depth and operating point."""
    title = f"{model}: {tokens:,} tokens"
    if reliability is not None:
        title += f", calibration error of the gate {reliability.expected_error:.3f}"
    table = Table(title=title, title_justify="left")
    for name in ("", "perplexity", "likeliest", "exact", "as full depth", "mean depth"):
        table.add_column(name, justify="right" if name else "left", no_wrap=not name)
    for name, row in rows.items():
        shares = (f"{share:.2%}" for share in (row.accuracy, row.exact, row.agreement))
        table.add_row(name, f"{row.perplexity:.3f}", *shares, f"{row.mean_depth:.3f}")
    return table
