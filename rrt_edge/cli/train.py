"""`train`: distillation, early exits and the gate."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rrt_edge.cli.common import guarded, json_option, print_json
from rrt_edge.cli.terminal import progress_bar
from rrt_edge.training.options import TrainOptions, options_from, read_yaml

SWITCHES = {field.name.replace("_", "-") for field in fields(TrainOptions) if "bool" in str(field.type)}
TRAINING = {  # option: help
    "stages": "Stages to run, in this order: uptrain, early-exit, gate; or all.",
    "epochs": "Passes over the data in each stage.",
    "exit-epochs": "The same for the early-exit stage.",
    "gate-epochs": "The same for the gate.",
    "max-steps": "Steps of each stage, in the place of epochs; needed where the data is streamed.",
    "batch": "Examples a step on each device; packed rows with --packing.",
    "accumulate": "Batches whose gradients make one step.",
    "packing": "Put examples behind each other in rows of --max-length tokens; they do not see each other.",
    "stream": "Read and tokenize the data while training.",
    "lr": "Peak learning rate of the block in uptraining.",
    "lora-lr": "The same for the adapters.",
    "exit-lr": "The same for both in the early-exit stage.",
    "gate-lr": "The same for the gate.",
    "warmup": "Steps of warm-up in each stage.",
    "weight-decay": "Of matrices.",
    "bf16": "Mixed precision.",
    "gradient-checkpointing": "Run the block again in the backward pass: less memory, a third more time.",
    "kd-weight": "Weight of the divergence from the teacher.",
    "temperature": "Softens both sides of it.",
    "divergence": "Which one: forward-kl, reverse-kl, jsd or tvd.",
    "teacher-top-k": "Keep so many of the teacher's logits a position on disk, once, instead of running it beside.",
    "exit-loss": "aggressive: the last loop, and the earlier ones at --exit-weight; weighted: cross entropy of all; "
    "stochastic: each batch runs as many loops as is drawn.",
    "exit-weight": "Weight of the earlier loops' losses.",
    "exit-kd-weight": "Weight of the last loop's KL within them.",
    "exit-teacher": "Take that KL from the teacher instead.",
    "kv-rule": "What a token that leaves early is to the loops it skips: exact, propagate, latest or skip.",
    "exits": "How tokens leave while the early-exit stage trains for another rule than exact: gate (half of them as it "
    "says) or random.",
    "max-length": "Tokens an example is cut to.",
    "seed": "Of the order of the data and of all that is drawn.",
    "save-steps": "Steps between checkpoints to go on from.",
    "eval-steps": "Steps between evaluations on --eval-data; 0: at the end of each stage.",
    "eval-batches": "Batches an evaluation reads at most.",
}
UNSET = {  # what stands in the place of a value not given
    "exit-epochs": "--epochs", "gate-epochs": "--epochs", "lora-lr": "--lr", "exit-lr": "--lr",
    "bf16": "on GPUs that have it",
}  # fmt: skip


def training_options(command: Any) -> Any:
    """An option for each field of `TrainOptions`, unset where it is not given: a YAML file may say it."""
    for name, told in reversed(TRAINING.items()):
        default = getattr(TrainOptions, name.replace("-", "_"))
        shown = UNSET[name] if default is None else ",".join(default) if isinstance(default, tuple) else default
        shown = ("on" if default else "off") if isinstance(default, bool) else shown
        kind: dict[str, Any] = {"is_flag": True, "default": None} if name in SWITCHES else {"metavar": "VALUE"}
        flag = f"--{name}/--no-{name}" if name in SWITCHES else f"--{name}"
        command = click.option(flag, **kind, help=f"{told}  [default: {shown}]")(command)
    return command


@click.command(
    epilog="Example: rrt-edge train recursive trained --data chats.jsonl --teacher TinyLlama-folder --epochs 2"
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--data", required=True, help="A .jsonl, .parquet or .txt file of messages or text; hub:NAME streams it.")
@click.option("--teacher", type=click.Path(path_type=Path), help="Checkpoint to distil from, usually the source.")
@click.option("--eval-data", type=click.Path(path_type=Path), help="Text on which every depth is evaluated.")
@click.option("--teacher-cache", type=click.Path(path_type=Path), help="Folder for what --teacher-top-k keeps.")
@click.option("--config", type=click.Path(path_type=Path), help="YAML file of the options below; flags win over it.")
@training_options
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
    **given: Any,
) -> None:
    """Train a recursive checkpoint back: distillation, early exits, exit gate.

    Run again after an interruption, it goes on from its last checkpoint (kept in OUT.work until the end). OUT gets the
    model, its losses (training.json, training.png) and TensorBoard's logs (runs).
    """
    import accelerate  # noqa: F401  the Trainer needs it; say so before anything is read

    from rrt_edge.training.distributed import is_main
    from rrt_edge.training.training import train as run

    flags = {name: value for name, value in given.items() if value is not None}
    options = options_from({**(read_yaml(config) if config else {}), **flags})
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
