"""`train`: distillation, early exits and the gate."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rrt_edge.cli.common import guarded, json_option, print_json, quiet_transformers
from rrt_edge.cli.dataclass_options import from_options, options_of
from rrt_edge.cli.help import RECURSIVE_CHECKPOINT, command, section
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.terminal import progress_bar
from rrt_edge.training.checks import check_training
from rrt_edge.training.options import TrainOptions, read_yaml


@command(
    reads=(RECURSIVE_CHECKPOINT,),
    epilog="Example: rrt-edge train recursive trained --data chats.jsonl --teacher TinyLlama-folder --epochs 2",
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@section("Data and teacher")
@click.option("--data", required=True, help="A .jsonl, .parquet or .txt file of messages or text; hub:NAME streams it.")
@click.option("--teacher", type=click.Path(path_type=Path), help="Checkpoint to distil from, usually the source.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="Text on which every depth is evaluated.")
@click.option("--teacher-cache", type=click.Path(path_type=Path), help="Folder for what --teacher-top-k keeps.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of the options below; flags win over it.")
@options_of(TrainOptions)
@json_option
@guarded
def train(
    checkpoint: Path,
    out: Path,
    data: str,
    teacher: Path | None,
    eval_data: Path | None,
    teacher_cache: Path | None,
    config: Path | None,
    as_json: bool,
    **flags: Any,
) -> None:
    """Train a recursive checkpoint back: distillation, early exits, exit gate.

    Run again after an interruption, it goes on from its last checkpoint (kept in OUT.work until the end). OUT gets the
    model, its losses (training.json, training.png) and TensorBoard's logs (runs).
    """
    options = from_options(TrainOptions, flags, read_yaml(config) if config else None)
    check_training(checkpoint, out, data, teacher, eval_data, options)
    with importing():
        import accelerate  # noqa: F401  the Trainer needs it; say so before anything is read

        from rrt_edge.training.distributed import is_main
        from rrt_edge.training.training import train as run

        quiet_transformers()

    folders: Any = {"teacher": teacher, "eval_data": eval_data, "teacher_cache": teacher_cache}
    with _standard_output_to_error(as_json), progress_bar(Console(stderr=True), not as_json) as progress:
        report = run(checkpoint, out, data=data, **folders, options=options, progress=progress)
    if not is_main():  # of several processes one tells
        return None
    if as_json:
        return print_json(report)
    losses = ", ".join(f"{stage} {loss}" for stage, loss in report.final_loss.items())
    return click.echo(f"{report.out}: {report.examples} examples, mean loss {losses}, {report.seconds:.0f} s")


def _standard_output_to_error(redirect: bool) -> Any:
    """The Trainer prints its log on standard output, where --json promises one object and nothing else."""
    import contextlib

    return contextlib.redirect_stdout(sys.stderr) if redirect else contextlib.nullcontext()
