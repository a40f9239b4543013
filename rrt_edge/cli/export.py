"""`export`: from a checkpoint to a bundle."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from rrt_edge.cli.common import guarded, json_option, print_json, quiet_transformers
from rrt_edge.cli.dataclass_options import from_options, options_of
from rrt_edge.cli.help import CHECKPOINT, RECURSIVE_CHECKPOINT, command
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.terminal import progress_bar, size
from rrt_edge.exporters.checks import check_export
from rrt_edge.exporters.options import ExportOptions
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rrt_edge.exporters import ExportReport

DEMO = Path("samples/pydoc/recursive")


@command(reads=(CHECKPOINT, RECURSIVE_CHECKPOINT), epilog="Example: rrt-edge export recursive bundle --bits 4")
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] BUNDLE", type=click.Path(path_type=Path))
@options_of(ExportOptions)
@json_option
@guarded
def export(paths: tuple[Path, ...], as_json: bool, **flags: Any) -> None:
    """Export a checkpoint as a bundle; with BUNDLE alone, the demo model that the repository ships."""
    if len(paths) > 2:
        raise BadInputError(f"export takes a source and a bundle, not {len(paths)} paths")
    options = from_options(ExportOptions, flags)
    source, bundle = paths if len(paths) == 2 else (_demo(), paths[0])
    check_export(str(source), bundle, options)
    with importing():
        from rrt_edge.exporters import export as run

        quiet_transformers()
    console = Console(stderr=True)
    with progress_bar(console, not as_json) as progress:
        report = run(str(source), bundle, **vars(options), progress=progress)
    if as_json:
        names = ["bundle", "bytes", "unshared_bytes", "bits", "seconds", "peak_memory_bytes"]
        names += [] if report.shared_bytes is None else ["shared_bytes"]
        cost = None if report.cost is None else dataclasses.asdict(report.cost)
        spent = {"spent": list(map(dataclasses.asdict, report.spent))} if report.spent else {}
        return print_json({**{name: getattr(report, name) for name in names}, "cost": cost, **spent})
    if report.spent:
        Console().print(spent_table(report))
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


def spent_table(report: ExportReport) -> Table:
    """Where 8 bits went, kind by kind, and what that saves."""
    table = Table(title="8 bits where 4 cost most", title_justify="left")
    for name in ("matrices", "at 8 bits", "bytes", "KL saved", "KL left"):
        table.add_column(name, justify="left" if name == "matrices" else "right")
    for kind in report.spent:
        cells = (f"{kind.raised} of {kind.count}", size(kind.bytes), f"{kind.saved:.4f}", f"{kind.left:.4f}")
        table.add_row(kind.kind.replace("_", ", "), *cells)
    sums = (sum(getattr(kind, field) for kind in report.spent) for field in ("saved", "left"))
    table.add_row("all", "", size(sum(kind.bytes for kind in report.spent)), *(f"{part:.4f}" for part in sums))
    return table


def export_table(report: ExportReport) -> Table:
    """Bytes by part, beside what the model takes without sharing."""
    table = Table(title=f"{report.bundle}: {report.bits}-bit bundle", title_justify="left")
    for name in ("", "this bundle", "unshared"):
        table.add_column(name, justify="right" if name else "left")
    ours, theirs = report.weight_bytes, report.unshared_weight_bytes
    for part, count in ours.items():
        table.add_row(part, size(count), size(theirs[part]) if part in theirs else "")
    rest = size(report.bytes - sum(ours.values()))
    table.add_row("graph, tokenizer, manifest", rest, rest)
    share = f"{report.bytes / report.unshared_bytes:.0%}"
    table.add_row("total", f"{size(report.bytes)} ({share})", size(report.unshared_bytes), style="bold")
    if report.shared_bytes is not None:
        more = f"{report.bytes / report.shared_bytes:.2f} times"
        table.add_row("with one block for all depths", f"{size(report.shared_bytes)} (this is {more})", "")
    if report.cost is not None:
        depths = ", ".join(f"{depth.kl:.4f} ({depth.top1_agreement:.1%})" for depth in report.cost.depths)
        where = f"on {report.cost.positions:,} tokens set apart"
        table.add_row(f"KL to the source (same top token), {where}", depths, "")
        table.add_row("perplexity to the source's there", f"{report.cost.ratio:.3f}", "")
    table.add_row("time", f"{report.seconds:.1f} s", "")
    table.add_row("peak memory", size(report.peak_memory_bytes), "")
    return table
