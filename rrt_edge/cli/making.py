"""`convert`, `train` and `export`: from a pretrained checkpoint to a bundle."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from rrt_edge.cli.common import guarded, json_option, print_json, quiet_transformers
from rrt_edge.runtime.bundle.manifest import KV_BITS
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.training.options import TrainOptions, options_from, read_yaml

DEMO = Path("samples/pydoc/recursive")


class Rank(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or a share of full rank below 1."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | float:
        try:
            number = float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor a share of full rank below 1", param, ctx)
        return int(number) if number.is_integer() else number


SWITCHES = {field.name.replace("_", "-") for field in fields(TrainOptions) if "bool" in str(field.type)}
INITS = ("average", "stepwise", "lower", "random")


@click.command(epilog="Example: rrt-edge convert TinyLlama-folder recursive --loops 2 --rank 64")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--loops", default=2, show_default=True, help="Times the block is run; divides the layers.")
@click.option(
    "--init", type=click.Choice(INITS), default="average", show_default=True,
    help="What the block starts from: the mean of the layers it replaces, evenly spaced layers, the first ones, noise.",
)  # fmt: skip
@click.option(
    "--rank", type=Rank(), default=0, show_default=True,
    help="LoRA rank of each depth, or a share of full rank below 1; 0 shares without relaxation.",
)  # fmt: skip
@click.option("--attention-rank", type=Rank(), help="The same for queries and attention output.  [default: --rank]")
@click.option("--kv-rank", type=Rank(), help="The same for keys and values.  [default: --rank]")
@click.option("--ffn-rank", type=Rank(), help="The same for the feed-forward layers.  [default: --rank]")
@click.option(
    "--lora-init", type=click.Choice(["svd", "zero"]), default="svd", show_default=True,
    help="What the adapters start from: the SVD of what sharing lost, or nothing.",
)  # fmt: skip
@click.option("--trust-remote-code", is_flag=True, help="Run configuration code that the checkpoint brings.")
@click.option("--own-vectors", is_flag=True, help="Give each depth norms and biases of its own.")
@click.option(
    "--dtype", type=click.Choice(["source", "float32", "bfloat16", "float16"]), default="source", show_default=True,
    help="How the weights are stored.",
)  # fmt: skip
@json_option
@guarded
def convert(
    source: str,
    out: Path,
    as_json: bool,
    attention_rank: float | None,
    kv_rank: float | None,
    ffn_rank: float | None,
    **options: Any,
) -> None:
    """Turn a checkpoint (a folder, or a name on the Hugging Face hub) into a recursive checkpoint."""
    from rrt_edge.cli.terminal import kept_table, progress_bar, size, two_columns
    from rrt_edge.conversion.conversion import convert as run

    quiet_transformers()
    console = Console(stderr=True)
    named = {"attention": attention_rank, "kv": kv_rank, "ffn": ffn_rank}
    ranks = {component: rank for component, rank in named.items() if rank is not None}
    with progress_bar(console, not as_json) as progress:
        report = run(source, out, component_ranks=ranks, **options, progress=progress)
    if as_json:
        return print_json(report)
    count = report.parameters
    rows = [
        ("loops x layers per block", f"{report.loops} x {report.layers_per_block}"),
        ("rank", ", ".join([f"{report.rank}", *(f"{name} {rank}" for name, rank in ranks.items())])),
        ("init", f"block {report.init}, adapters {report.lora_init}"),
        ("parameters outside the embedding", f"{count.non_embedding:,}"),
        (
            "the source's",
            f"{count.source_non_embedding:,} (now {count.non_embedding / count.source_non_embedding:.0%})",
        ),
        ("time, peak memory", f"{report.seconds:.1f} s, {size(report.peak_memory_bytes)}"),
    ]
    Console().print(two_columns(f"{report.out}: recursive checkpoint", rows))
    if report.kept:
        Console().print(kept_table(report.kept))
    return None


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

    from rrt_edge.cli.terminal import progress_bar
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


@click.command(epilog="Example: rrt-edge export recursive bundle --bits 4")
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] BUNDLE", type=click.Path(path_type=Path))
@click.option("--bits", default="4", type=click.Choice(["4", "8", "16", "32"]), show_default=True)
@click.option(
    "--eight-bit", multiple=True, type=click.Choice(["none", "block", "lora", "embedding", "head"]),
    help="Keep a part at 8 bits where the rest has 4; may be repeated.  [default: a tied embedding and head]",
)  # fmt: skip
@click.option("--loops", default=2, show_default=True, help="For a source that is not recursive; 1: unshared.")
@click.option("--init", type=click.Choice(INITS), default="average", show_default=True)
@click.option("--rank", default=0, show_default=True, help="For a source that is not recursive.")
@click.option(
    "--kv-bits", default="32", type=click.Choice([str(bits) for bits in KV_BITS]), show_default=True,
    help="How keys and values are kept while running; 8: a quarter of the memory.",
)  # fmt: skip
@json_option
@guarded
def export(
    paths: tuple[Path, ...], bits: str, eight_bit: tuple[str, ...], kv_bits: str, as_json: bool, **converting: Any
) -> None:
    """Export a checkpoint as a bundle; with BUNDLE alone, the demo model that the repository ships."""
    if len(paths) > 2:
        raise BadInputError(f"export takes a source and a bundle, not {len(paths)} paths")
    source, bundle = paths if len(paths) == 2 else (_demo(), paths[0])
    from rrt_edge.cli.terminal import export_table, progress_bar
    from rrt_edge.exporters import export as run

    quiet_transformers()
    console = Console(stderr=True)
    with progress_bar(console, not as_json) as progress:
        kept = tuple(part for part in eight_bit if part != "none") if eight_bit else None
        options: Any = {"bits": int(bits), "eight_bit": kept, "kv_bits": int(kv_bits), **converting}
        report = run(str(source), bundle, **options, progress=progress)
    if as_json:
        wanted = ("bundle", "bytes", "unshared_bytes", "bits", "seconds", "peak_memory_bytes")
        return print_json({name: getattr(report, name) for name in wanted})
    return Console().print(export_table(report))


def _demo() -> Path:
    """The demo checkpoint: in the current folder's checkout, or in the one this package runs from."""
    for root in (Path.cwd(), Path(__file__).resolve().parents[2]):
        if (root / DEMO / "config.json").is_file():
            return root / DEMO
    raise BadInputError(
        f"export with one path exports the demo model, which lives in {DEMO.as_posix()} of the repository and is not "
        "here; run this in a checkout, or give SOURCE and BUNDLE"
    )
