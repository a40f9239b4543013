"""`convert`: from a pretrained checkpoint to a recursive one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from rrt_edge.cli.common import guarded, json_option, print_json, quiet_transformers
from rrt_edge.cli.dataclass_options import from_options, options_of
from rrt_edge.cli.help import CHECKPOINT, command
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.terminal import progress_bar, size, two_columns
from rrt_edge.conversion.checks import check_conversion
from rrt_edge.conversion.options import ConvertOptions, read_rank
from rrt_edge.model.sharing import ranks_in_words

if TYPE_CHECKING:
    from rrt_edge.conversion.adapters import Kept, OutputError
    from rrt_edge.conversion.conversion import Parameters


class Rank(click.ParamType):  # type: ignore[type-arg]
    """A whole number, or a share of full rank below 1."""

    name = "rank"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return read_rank(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor a share of full rank below 1", param, ctx)


@command(reads=(CHECKPOINT,), epilog="Example: rrt-edge convert TinyLlama-folder recursive --loops 2 --rank 64")
@click.argument("source")
@click.argument("out", type=click.Path(path_type=Path))
@options_of(ConvertOptions)
@click.option("--attention-rank", type=Rank(), help="Rank of queries and attention output.  [default: --rank]")
@click.option("--kv-rank", type=Rank(), help="The same for keys and values.  [default: --rank]")
@click.option("--ffn-rank", type=Rank(), help="The same for the feed-forward layers.  [default: --rank]")
@json_option
@guarded
def convert(
    source: str,
    out: Path,
    as_json: bool,
    attention_rank: float | None,
    kv_rank: float | None,
    ffn_rank: float | None,
    **flags: Any,
) -> None:
    """Turn a checkpoint into a recursive checkpoint.

    SOURCE is a folder, a GGUF file, or a name on the Hugging Face hub.
    """
    console = Console(stderr=True)
    named = {"attention": attention_rank, "kv": kv_rank, "ffn": ffn_rank}
    ranks = {component: rank for component, rank in named.items() if rank is not None}
    options = dataclasses.replace(from_options(ConvertOptions, flags), component_ranks=ranks)
    check_conversion(source, out, options)
    with importing():
        from rrt_edge.conversion.conversion import convert as run

        quiet_transformers()
    with progress_bar(console, not as_json) as progress:
        report = run(source, out, **vars(options), progress=progress)
    if as_json:
        return print_json(report)
    count = report.parameters
    rows = [
        ("loops x layers per block", f"{report.loops} x {report.layers_per_block}"),
        ("rank", ranks_in_words(report.rank, report.component_ranks)),
        ("init", f"block {report.init}, adapters {report.lora_init}"),
        *([("fitted to", f"{report.texts} texts, {report.tokens:,} tokens")] if report.texts else []),
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
    if report.output_errors:
        Console().print(error_table(report.output_errors))
    warn_of_size(console, report.parameters)
    return None


def warn_of_size(console: Console, count: Parameters) -> None:
    """Say so where sharing saves nothing, the adapters counted."""
    if count.non_embedding >= count.source_non_embedding:
        console.print(
            f"Warning: {count.non_embedding:,} parameters are not fewer than the source's "
            f"{count.source_non_embedding:,}; give a lower --rank."
        )


def kept_table(kept: Sequence[Kept]) -> Table:
    """Return a table of how much of what sharing lost the adapters bring back."""
    rows = [(row.projection, row.kept, row.worst, row.worst_layer) for row in kept]
    return _table("energy of the residual that the adapters keep", rows)


def error_table(errors: Sequence[OutputError]) -> Table:
    """Return a table of what block and adapters lose of the layers' output on the texts."""
    rows = [(row.projection, row.error, row.worst, row.worst_layer) for row in errors]
    return _table("energy of the output on the texts that is lost", rows)


def _table(title: str, rows: Sequence[tuple[str, float, float, int]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in ("projection", "all layers", "worst layer", ""):
        table.add_column(name, justify="left" if name == "projection" else "right")
    for projection, share, worst, layer in rows:
        table.add_row(projection, f"{share:.1%}", f"{worst:.1%}", f"layer {layer}")
    return table
