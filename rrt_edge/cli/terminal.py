"""What the command line shows people: progress, tables, and depths as colours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrt_edge.conversion.conversion import Kept
    from rrt_edge.exporters import ExportReport
    from rrt_edge.runtime import Manifest, Token
    from rrt_edge.runtime.bundle.manifest import Windows
    from rrt_edge.runtime.check import VerifyReport
    from rrt_edge.runtime.scoring.calibration import Calibrated
    from rrt_edge.runtime.scoring.metrics import Point, Reliability, Score

DEPTH_STYLES = ("green", "yellow", "dark_orange", "red")  # depth 1, 2, 3, and beyond
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
BAR = 30  # characters of the fastest test's bar


@contextmanager
def progress_bar(console: Console, shown: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback that draws a progress bar, or None where nothing is to be shown."""
    if not (shown and console.is_terminal):
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield advance


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def depth_style(depth: int) -> str:
    return DEPTH_STYLES[min(depth, len(DEPTH_STYLES)) - 1]


def depth_text(token: Token, console: Console) -> Text:
    """The token's text in the colour of the depth it left at; without colours, with the depth behind it."""
    if console.color_system is not None:
        return Text(token.text, style=depth_style(token.depth))
    return Text(token.text + str(token.depth).translate(SUPERSCRIPTS) if token.text else "")


def legend(loops: int, console: Console) -> Text:
    """Which colour stands for which depth; without colours, what the small numbers are."""
    if console.color_system is None:
        return Text("the number behind a token is the depth it left at")
    text = Text("depth: ")
    for depth in range(1, loops + 1):
        text.append(f" {depth} ", style=f"{depth_style(depth)} reverse")
        text.append(" ")
    return text


def two_columns(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(name, value)
    return table


def kept_table(kept: Sequence[Kept]) -> Table:
    """How much of what sharing lost the adapters bring back."""
    table = Table(title="energy of the residual that the adapters keep", title_justify="left")
    for name in ("projection", "all layers", "worst layer", ""):
        table.add_column(name, justify="left" if name == "projection" else "right")
    for row in kept:
        table.add_row(row.projection, f"{row.kept:.1%}", f"{row.worst:.1%}", f"layer {row.worst_layer}")
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
    table.add_row("time", f"{report.seconds:.1f} s", "")
    table.add_row("peak memory", size(report.peak_memory_bytes), "")
    return table


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


def calibration_table(
    bundle: str,
    found: Mapping[str, Calibrated],
    curve: Sequence[Point],
    speeds: Mapping[float | None, float],
    loops: int,
) -> Group:
    """The operating points, and the curve they lie on; speeds by threshold, beside full depth."""
    tokens = next(iter(found.values())).tokens
    table = Table(title=f"{bundle}: operating points, from {tokens:,} tokens", title_justify="left")
    for name in ("", "promise", "confidence", "threshold", "as full depth", "mean depth", "speed up to"):
        table.add_column(name, justify="right" if name else "left", no_wrap=name in ("", "threshold"))
    for name, one in found.items():
        threshold = "none keeps it" if one.threshold is None else f"{one.threshold:.6f}"
        row = (f"{100 * one.promised:g}%", f"{one.confidence:.0%}", threshold, f"{one.agreement:.2%}")
        table.add_row(name, *row, f"{one.mean_depth:.3f}", f"{speeds[one.threshold]:.2f} x")
    title = "by threshold: as full depth, speed, mean depth"
    lines = Table(title=title, title_justify="left", show_header=False, box=None)
    depths = [curve[0].mean_depth + step / 10 * (curve[-1].mean_depth - curve[0].mean_depth) for step in range(11)]
    nearest = [min(curve, key=lambda point: abs(point.mean_depth - depth)) for depth in depths]
    for point in dict.fromkeys(nearest):
        bar = "█" * round(BAR * point.mean_depth / loops)
        speed = f"{speeds[point.threshold]:.2f} x"
        lines.add_row(f"{point.threshold:.6f}", f"{point.agreement:.2%}", speed, f"{point.mean_depth:.2f} {bar}")
    return Group(table, lines)


def verification_table(bundle: str, report: VerifyReport) -> Table:
    """What `verify` found, a row for each depth."""
    verdict = "ok" if report.ok else "FAILED"
    hashes = "hashes ok" if report.hashes_ok else "hashes differ"
    compared = f", {report.positions} positions compared" if report.depths else ", no source compared"
    table = Table(title=f"{bundle}: {verdict}, {hashes}{compared}", title_justify="left")
    for name in ("depth", "largest logit error", "mean KL", "same top token"):
        table.add_column(name, justify="right")
    for row in report.depths:
        table.add_row(str(row.depth), f"{row.max_abs_logit_error:.2e}", f"{row.kl:.5f}", f"{row.top1_agreement:.2%}")
    return table


def _attention(windows: Windows) -> str:
    """How many layers slide over how many tokens."""
    layers = [window for row in windows for window in row]
    sizes = sorted({window for window in layers if window})
    return ", ".join(f"{layers.count(size)} of {len(layers)} layers see the last {size} tokens" for size in sizes)


def manifest_table(bundle: str, manifest: Manifest) -> Table:
    """What a bundle holds."""
    shape, gate, bits = manifest.architecture, manifest.gate, manifest.quantization
    parts = ", ".join(f"{part} {count}" for part, count in bits.parts.items())
    rows = [
        ("family", shape.family),
        ("loops x layers per block", f"{shape.loops} x {shape.layers_per_block}"),
        ("LoRA rank", str(shape.rank)),
        ("hidden size", str(shape.hidden_size)),
        ("heads: query, key/value", f"{shape.attention_heads}, {shape.key_value_heads} of {shape.head_dim}"),
        ("vocabulary, context", f"{shape.vocabulary}, {shape.context_length} tokens"),
        *((("attention", _attention(shape.windows)),) if shape.windows else ()),
        ("cache", f"{shape.kv_bytes_per_token:,} bytes a token ({shape.kv_bits} bits), rule {manifest.kv_rule}"),
        ("exit gate", f"{gate.kind}, {'trained' if gate.trained else 'not trained'}"),
        ("calibrated threshold", "none" if gate.threshold is None else f"{gate.threshold}"),
        ("bits", f"{bits.bits} ({parts}; blocks of {bits.block_size})"),
        *((f"weights: {part}", size(count)) for part, count in manifest.weight_bytes.items()),
        ("weights of the unshared model", size(manifest.unshared_weight_bytes)),
        *((f"provenance: {key}", str(value)) for key, value in manifest.provenance.items()),
        *((name, f"{size(file.bytes)}, sha256 {file.sha256[:12]}...") for name, file in manifest.files.items()),
    ]
    if manifest.verification is not None:
        rows.append(("verified under loosened tolerance", str(manifest.verification["loosened"])))
    return two_columns(bundle, rows)


def bench_report(name: str, rows: list[dict[str, Any]]) -> Group:
    """What `bench` measured: a table, and under it a bar for each speed, prefill and decode on a scale of their own."""
    first = rows[0]
    facts = f"{size(first['bundle_bytes'])}, {first['threads']} threads, loaded in {first['load_s']:.2f} s"
    facts += "" if first["device"] == "cpu" else f" on {first['device']}"
    title = Text(f"{name}: {facts}, peak memory {size(first['peak_memory_bytes'])}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("test", overflow="fold", vertical="bottom")
    for column in ("tokens/s", "spread", "depth", "rows/\ntoken", "ttft", "band-\nwidth"):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    plot = Table(box=None, pad_edge=False, show_header=False)
    plot.add_column(overflow="fold")
    plot.add_column(no_wrap=True, min_width=BAR)
    plot.add_column(justify="right", no_wrap=True)
    fastest = {kind: max(_speeds(rows, kind), default=1.0) for kind in ("prefill", "decode")}
    for row in rows:
        speed, share = row["tokens_per_second"], row["tokens_per_second"] / fastest[row["test"].partition(":")[0]]
        table.add_row(
            row["test"],
            f"{speed:.1f}",
            f"{row['spread']:.0%}",
            f"{row['mean_depth']:.2f}",
            f"{row['block_rows_per_token']:.2f}",
            f"{row['ttft_s']:.2f} s",
            f"{row['bandwidth_share']:.0%}",
        )
        plot.add_row(row["test"], "█" * max(1, round(BAR * share)), f"{speed:.1f}")
    return Group(title, table, plot)


def _speeds(rows: list[dict[str, Any]], kind: str) -> list[float]:
    return [row["tokens_per_second"] for row in rows if row["test"].startswith(kind)]
