"""The command line: one subcommand for each arrow of the way from a checkpoint to text."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console

from rrt_edge import __version__
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError

DEMO = Path("samples/pydoc/recursive")
Command = TypeVar("Command", bound=Callable[..., Any])
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")


def guarded(command: Command) -> Command:
    """Turn errors into one line (or a JSON object) on standard error and an exit status: 2 bad input, 1 a failure."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        context = click.get_current_context()
        try:
            return command(*args, **kwargs)
        except RRTEdgeError as error:
            if context.find_root().params.get("debug"):
                raise
            _complain(error, str(error), bool(kwargs.get("as_json")))
            context.exit(2 if isinstance(error, BadInputError) else 1)
        except ModuleNotFoundError as error:
            extra = "train" if error.name in ("accelerate", "datasets") else "export"
            hint = f"needs {error.name}, which is not installed: pip install 'rrt-edge[{extra}]'"
            _complain(error, f"rrt-edge {context.info_name} {hint}", bool(kwargs.get("as_json")))
            context.exit(2)
        except KeyboardInterrupt:
            _complain(RRTEdgeError(), "interrupted; nothing half written was left behind", bool(kwargs.get("as_json")))
            context.exit(130)

    return run  # type: ignore[return-value]


def _complain(error: Exception, message: str, as_json: bool) -> None:
    line = " ".join(message.split())
    if as_json:
        line = json.dumps({"error": {"type": type(error).__name__, "message": line}})
    click.echo(line if as_json else f"error: {line}", err=True)


def _print_json(value: Any) -> None:
    found = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    click.echo(json.dumps(found))


def _console() -> Console:
    return Console(stderr=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rrt-edge")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Relaxed Recursive Transformers for the edge: convert, train, export and run with early exit."""


def _quiet_transformers() -> None:
    """Our own progress bars and reports say what transformers' would."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@main.command(epilog="Example: rrt-edge convert TinyLlama-folder recursive --loops 2 --rank 64")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--loops", default=2, show_default=True, help="Times the block is run; divides the layers.")
@click.option(
    "--init", type=click.Choice(["average", "stepwise", "lower"]), default="average", show_default=True,
    help="What the block starts from: the mean of the layers it replaces, evenly spaced layers, the first ones.",
)  # fmt: skip
@click.option("--rank", default=0, show_default=True, help="LoRA rank of each depth; 0 shares without relaxation.")
@click.option(
    "--dtype", type=click.Choice(["source", "float32", "bfloat16", "float16"]), default="source", show_default=True,
    help="How the weights are stored.",
)  # fmt: skip
@json_option
@guarded
def convert(source: str, out: Path, loops: int, init: Any, rank: int, dtype: Any, as_json: bool) -> None:
    """Turn a checkpoint (a folder, or a name on the Hugging Face hub) into a recursive checkpoint."""
    from rrt_edge.conversion import convert as run
    from rrt_edge.terminal import progress_bar, size, two_columns

    _quiet_transformers()
    console = _console()
    with progress_bar(console, not as_json) as progress:
        report = run(source, out, loops=loops, init=init, rank=rank, dtype=dtype, progress=progress)
    if as_json:
        return _print_json(report)
    count = report.parameters
    rows = [
        ("loops x layers per block", f"{report.loops} x {report.layers_per_block}"),
        ("rank, init", f"{report.rank}, {report.init}"),
        ("parameters outside the embedding", f"{count.non_embedding:,}"),
        (
            "the source's",
            f"{count.source_non_embedding:,} (now {count.non_embedding / count.source_non_embedding:.0%})",
        ),
        ("time, peak memory", f"{report.seconds:.1f} s, {size(report.peak_memory_bytes)}"),
    ]
    return Console().print(two_columns(f"{report.out}: recursive checkpoint", rows))


@main.command(
    epilog="Example: rrt-edge train recursive trained --data chats.jsonl --teacher TinyLlama-folder --epochs 2"
)
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--data", type=click.Path(path_type=Path), required=True, help="JSON lines of messages or text.")
@click.option("--teacher", type=click.Path(path_type=Path), help="Checkpoint to distil from, usually the source.")
@click.option("--stages", default="uptrain,early-exit,gate", show_default=True, help="Stages to run, in this order.")
@click.option("--epochs", default=1.0, show_default=True, help="Passes over the data in each stage.")
@click.option("--exit-epochs", type=float, help="The same for the early-exit stage.")
@click.option("--gate-epochs", type=float, help="The same for the gate.")
@click.option("--batch", default=32, show_default=True, help="Examples a step on each device.")
@click.option("--lr", default=2e-4, show_default=True, help="Peak learning rate of uptraining.")
@click.option("--exit-lr", type=float, help="The same for the early-exit stage.  [default: --lr]")
@click.option("--gate-lr", default=1e-2, show_default=True, help="The same for the gate.")
@click.option("--warmup", default=40, show_default=True, help="Steps of warm-up in each stage.")
@click.option("--kd-weight", default=1.0, show_default=True, help="Weight of the teacher's KL.")
@click.option("--temperature", default=1.0, show_default=True, help="Softens that KL.")
@click.option("--exit-weight", default=0.1, show_default=True, help="Weight of the earlier loops' losses.")
@click.option("--max-length", default=1024, show_default=True, help="Tokens an example is cut to.")
@click.option("--seed", default=0, show_default=True)
@click.option("--save-steps", default=200, show_default=True, help="Steps between checkpoints to go on from.")
@json_option
@guarded
def train(
    checkpoint: Path, out: Path, data: Path, teacher: Path | None, stages: str, as_json: bool, **given: Any
) -> None:
    """Train a recursive checkpoint back: distillation, early exits, exit gate.

    Run again after an interruption, it goes on from its last checkpoint (kept in OUT.work until the end).
    """
    import accelerate  # noqa: F401  the Trainer needs it; say so before anything is read

    from rrt_edge.training import TrainOptions
    from rrt_edge.training import train as run

    named: Any = tuple(stage.strip() for stage in stages.split(","))
    options = TrainOptions(stages=named, **given)
    with _standard_output_to_error(as_json):
        report = run(checkpoint, out, data=data, teacher=teacher, options=options)
    if as_json:
        return _print_json(report)
    losses = ", ".join(f"{stage} {loss}" for stage, loss in report.final_loss.items())
    return click.echo(f"{report.out}: {report.examples} examples, mean loss {losses}, {report.seconds:.0f} s")


def _standard_output_to_error(redirect: bool) -> Any:
    """The Trainer prints its log on standard output, where --json promises one object and nothing else."""
    import contextlib

    return contextlib.redirect_stdout(sys.stderr) if redirect else contextlib.nullcontext()


@main.command(epilog="Example: rrt-edge export recursive bundle --bits 4")
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] BUNDLE", type=click.Path(path_type=Path))
@click.option("--bits", default="4", type=click.Choice(["4", "8", "16", "32"]), show_default=True)
@click.option(
    "--eight-bit", multiple=True, type=click.Choice(["none", "block", "lora", "embedding", "head"]),
    help="Keep a part at 8 bits where the rest has 4; may be repeated.  [default: a tied embedding and head]",
)  # fmt: skip
@click.option("--loops", default=2, show_default=True, help="For a source that is not recursive; 1: unshared.")
@click.option("--init", type=click.Choice(["average", "stepwise", "lower"]), default="average", show_default=True)
@click.option("--rank", default=0, show_default=True, help="For a source that is not recursive.")
@json_option
@guarded
def export(
    paths: tuple[Path, ...], bits: str, eight_bit: tuple[str, ...], loops: int, init: Any, rank: int, as_json: bool
) -> None:
    """Export a checkpoint as a bundle; with BUNDLE alone, the demo model that the repository ships."""
    if len(paths) > 2:
        raise BadInputError(f"export takes a source and a bundle, not {len(paths)} paths")
    source, bundle = paths if len(paths) == 2 else (_demo(), paths[0])
    from rrt_edge.exporters import export as run
    from rrt_edge.terminal import export_table, progress_bar

    _quiet_transformers()
    console = _console()
    with progress_bar(console, not as_json) as progress:
        kept = tuple(part for part in eight_bit if part != "none") if eight_bit else None
        options: Any = {"bits": int(bits), "eight_bit": kept, "loops": loops, "init": init, "rank": rank}
        report = run(str(source), bundle, **options, progress=progress)
    if as_json:
        wanted = ("bundle", "bytes", "unshared_bytes", "bits", "seconds", "peak_memory_bytes")
        return _print_json({name: getattr(report, name) for name in wanted})
    return Console().print(export_table(report))


def _demo() -> Path:
    """The demo checkpoint: in the current folder's checkout, or in the one this package runs from."""
    for root in (Path.cwd(), Path(__file__).resolve().parent.parent):
        if (root / DEMO / "config.json").is_file():
            return root / DEMO
    raise BadInputError(
        f"export with one path exports the demo model, which lives in {DEMO.as_posix()} of the repository and is not "
        "here; run this in a checkout, or give SOURCE and BUNDLE"
    )


@main.command(epilog="Example: rrt-edge verify bundle --source recursive --text chats.txt")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--source", help="The checkpoint the bundle came from: compares the logits at every depth.")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Text of the model's domain or chats (.jsonl), 2,000 tokens or more.",
)
@click.option("--max-error", type=float, help="Allow a larger relative logit error; recorded in the manifest.")
@click.option("--max-kl", type=float, help="Allow a larger mean KL; recorded in the manifest.")
@click.option("--min-agreement", type=float, help="Allow a lower top-1 agreement; recorded in the manifest.")
@json_option
@guarded
def verify(
    bundle: Path, source: str | None, text: Path | None, max_error: float | None, max_kl: float | None,
    min_agreement: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Check a bundle's hashes and graph and, with its source, prove its logits at every depth."""
    if source is None and text is not None:
        raise BadInputError("--text is compared with a source: give --source too")
    if source is None:
        from rrt_edge.runtime.check import check

        report = check(bundle)
    else:
        from rrt_edge.exporters import Tolerance
        from rrt_edge.exporters import verify as run

        _quiet_transformers()
        report = run(bundle, source=source, text=text, loosened=Tolerance(max_error, max_kl, min_agreement))
    if as_json:
        found = dataclasses.asdict(report)
        tolerance = {name: value for name, value in found["tolerance"].items() if value is not None}
        _print_json({**{name: found[name] for name in ("ok", "hashes_ok", "depths")}, "tolerance": tolerance})
    else:
        from rrt_edge.terminal import verification_table

        Console().print(verification_table(str(bundle), report))
    if report.problem:
        _complain(RRTEdgeError(), report.problem, as_json)
    click.get_current_context().exit(0 if report.ok else 1)


@main.command(epilog="Example: rrt-edge inspect bundle")
@click.argument("bundle", type=click.Path(path_type=Path))
@json_option
@guarded
def inspect(bundle: Path, as_json: bool) -> None:
    """Show what is inside a bundle."""
    from rrt_edge.runtime.manifest import Manifest
    from rrt_edge.terminal import manifest_table

    manifest = Manifest.read(bundle)
    if as_json:
        return _print_json(manifest)
    return Console().print(manifest_table(str(bundle), manifest))


def sampling_options(command: Command) -> Command:
    """The options of `generate` and `chat` that choose tokens."""
    options = [
        click.option("--max-tokens", default=256, show_default=True, help="Tokens generated at most."),
        click.option("--temperature", default=0.0, show_default=True, help="0 always takes the likeliest token."),
        click.option("--top-k", default=0, show_default=True, help="Only the k likeliest; 0: all."),
        click.option("--top-p", default=1.0, show_default=True, help="Only the likeliest that make up this share."),
        click.option("--min-p", default=0.0, show_default=True, help="Only those with this share of the likeliest's."),
        click.option("--repetition-penalty", default=1.0, show_default=True, help="Above 1: repeats less."),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="End where this text comes; may be given several times."),
        click.option(
            "--exit-policy", default="full", show_default=True,
            help="full, depth=N, threshold=T, or threshold for the bundle's calibrated one.",
        ),
        click.option("--context", type=int, help="Tokens a conversation may hold."),
        click.option("--threads", type=int, help="onnxruntime's threads; one for each core by default."),
        click.option("--show-depth", is_flag=True, help="Colour each token by the depth it left at."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


def _sampling(given: dict[str, Any]) -> Any:
    from rrt_edge.runtime import Sampling

    return Sampling(**{field.name: given[field.name] for field in dataclasses.fields(Sampling)})


@main.command(epilog="Example: rrt-edge generate bundle 'What does os.path.join do?' --exit-policy threshold=0.9")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("prompt", required=False)
@click.option("--raw", is_flag=True, help="Do not put the prompt into the chat template.")
@click.option("--prompt-ids", help="Token ids instead of a prompt: 1,2,3.")
@sampling_options
@json_option
@guarded
def generate(
    bundle: Path, prompt: str | None, raw: bool, prompt_ids: str | None, exit_policy: str, context: int | None,
    threads: int | None, show_depth: bool, as_json: bool, **given: Any,
) -> None:  # fmt: skip
    """Answer one prompt, given as an argument or on standard input."""
    from rrt_edge.runtime import Model
    from rrt_edge.terminal import depth_text, legend

    sampling = _sampling(given)
    if prompt_ids is not None and prompt is not None:
        raise BadInputError("give a prompt or --prompt-ids, not both")
    text = None if prompt_ids is not None else _prompt(prompt)
    with Model.load(bundle, context=context, threads=threads) as model:
        if text is None:
            asked: str | list[int] = _parse_ids(str(prompt_ids))
        elif raw or model.template is None:
            asked = text
        else:
            asked = model.encode_chat([{"role": "user", "content": text}])
        session = model.session()
        console = Console(highlight=False, soft_wrap=True)
        tokens = []
        for token in session.stream(asked, sampling, exit_policy):
            tokens.append(token)
            if as_json:
                continue
            if show_depth:
                console.print(depth_text(token, console), end="")
            else:
                click.echo(token.text, nl=False)
        generation = session.generation(tokens)
    if as_json:
        return _print_json(_generation_json(generation))
    stats = generation.stats
    click.echo()
    if show_depth:
        console.print(legend(model.loops, console))
    return click.echo(
        f"{stats.generated_tokens} tokens, {stats.decode_tokens_per_second:.0f} tokens/s, mean depth "
        f"{stats.mean_depth:.2f} of {model.loops}, {stats.block_rows_per_token:.2f} block rows a token",
        err=True,
    )


def _prompt(argument: str | None) -> str:
    """The prompt from the command line or from a pipe."""
    if argument is not None and argument != "-":
        return argument
    if argument is None and sys.stdin.isatty():
        raise BadInputError("no prompt; give it as an argument, or on standard input")
    return sys.stdin.read().strip()


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise BadInputError(f"--prompt-ids {text!r}: must be token ids like 1,2,3") from None


def _generation_json(generation: Any) -> dict[str, Any]:
    stats = dataclasses.asdict(generation.stats)
    names = (
        "prompt_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_s", "mean_depth",
        "block_rows_per_token", "peak_memory_bytes",
    )  # fmt: skip
    return {
        "text": generation.text,
        "prompt_tokens": stats["prompt_tokens"],
        "tokens": [{"id": t.id, "text": t.text, "depth": t.depth, "gate": t.gate} for t in generation.tokens],
        "finish_reason": generation.finish_reason,
        "stats": {name: stats[name] for name in names},
    }


@main.command(epilog="Example: rrt-edge chat bundle --exit-policy threshold --show-depth")
@click.argument("bundle", type=click.Path(path_type=Path))
@sampling_options
@guarded
def chat(
    bundle: Path, exit_policy: str, context: int | None, threads: int | None, show_depth: bool, **given: Any
) -> None:
    """Talk with a bundle in the terminal; lines from a pipe are answered one by one."""
    from rrt_edge.runtime import Model
    from rrt_edge.terminal import Chat

    sampling = _sampling(given)
    with Model.load(bundle, context=context, threads=threads) as model:
        console = Console(highlight=False)
        Chat(model, console, sampling, exit_policy, show_depth).run(interactive=sys.stdin.isatty())
