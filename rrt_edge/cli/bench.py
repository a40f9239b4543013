"""`bench`: how fast a bundle runs here, by exit policy."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rrt_edge.cli.common import BundlePath, guarded, json_option, print_json
from rrt_edge.cli.help import command, section
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.options import load_options
from rrt_edge.cli.terminal import progress_bar, size
from rrt_edge.exporters.checks import check_shape
from rrt_edge.exporters.options import BLOCK_SIZE, BLOCK_SIZES, WeightBits
from rrt_edge.runtime import errors
from rrt_edge.runtime.bundle.architecture import KV_BITS
from rrt_edge.runtime.bundle.kv_rule_names import KV_RULE_NAMES
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.system.progress import Progress


@command(
    epilog="Example: rrt-edge bench --shape tinyllama --random --loops 2 --rank 64 "
    "--tests decode:full,decode:depth=1,decode:trace=0.6:skip:x8"
)
@click.argument("bundle", required=False, type=BundlePath())
@section("A shape in the place of a bundle")
@click.option("--shape", help="Measure a model of this shape instead of a bundle: tinyllama, smollm.")
@click.option("--random", "random_weights", is_flag=True, help="With random weights; needed with --shape.")
@click.option("--loops", default=2, show_default=True, help="For --shape; 1: unshared.")
@click.option("--rank", default=0, show_default=True, help="For --shape.")
@click.option(
    "--bits", default="4", type=click.Choice([*map(str, get_args(WeightBits))]), show_default=True, help="For --shape."
)
@click.option(
    "--block-size",
    default=str(BLOCK_SIZE),
    type=click.Choice([*map(str, BLOCK_SIZES)]),
    show_default=True,
    help="For --shape: weights that share a scale.",
)
@click.option("--kv-rule", default="exact", type=click.Choice(KV_RULE_NAMES), show_default=True, help="For --shape.")
@click.option(
    "--kv-bits",
    default="32",
    type=click.Choice([str(bits) for bits in KV_BITS]),
    show_default=True,
    help="For --shape.",
)
@click.option("--merge-adapters", is_flag=True, help="For --shape: weights of its own for each depth.")
@click.option("--keep", type=click.Path(path_type=Path), help="For --shape: keep the bundle here, and reuse it.")
@section("What is measured")
@click.option(
    "--tests",
    help="Comma-separated: prefill or decode, then :POLICY (also trace=SHARE or clustered=SHARE: that share of the "
    "tokens leaves after loop 1; recorded: as in --traces), :accept=SHARE (so many drafts stand: simulated) or "
    ":text=SHARE (of drafts from the text), :KV-RULE, :xBATCH.  [default: prefill and decode at every depth]",
)
@click.option("--traces", type=click.Path(path_type=Path), help="Replies as generate --json prints them, one a line.")
@click.option("--prompt", default=256, show_default=True, help="Prompt tokens.")
@click.option("--new", default=128, show_default=True, help="Tokens generated.")
@click.option("--repeats", default=3, show_default=True, help="Times each test is run, in turn with the others.")
@load_options(without={"context", "weight_cache", "kv_budget_bytes", "kv_rule", "mmap", "reproducible"})
@json_option
@guarded
def bench(
    bundle: Path | None, shape: str | None, random_weights: bool, loops: int, rank: int, bits: str, block_size: str,
    kv_rule: Any, kv_bits: str, merge_adapters: bool, keep: Path | None, tests: str | None, traces: Path | None,
    as_json: bool, **settings: Any,
) -> None:  # fmt: skip
    """Measure prefill and decode of a bundle by exit policy, KV rule and batch. Leave the machine alone meanwhile."""
    if (bundle is None) == (shape is None):
        raise BadInputError("give a bundle, or --shape with --random")
    if shape is not None and not random_weights:
        raise BadInputError("--shape has no weights to load: say --random to measure with random ones")
    settings["traces"] = str(traces or "")
    settings["tests"] = [test.strip() for test in tests.split(",")] if tests else []
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="rrt-edge-") if shape and keep is None else nullcontext("") as folder:
        where = bundle or keep or Path(folder) / "bundle"
        if shape is not None and not (where / "manifest.json").is_file():
            made = {"loops": loops, "rank": rank, "bits": int(bits), "block_size": int(block_size)}
            made |= {"kv_rule": kv_rule, "kv_bits": int(kv_bits), "merge_adapters": merge_adapters}
            _write_random(shape, where, console, as_json, **made)
        rows = _measure(where, settings, console, as_json)
    name = where.name if shape is None else f"{shape} {loops} x, rank {rank}, {bits} bits"
    if as_json:
        return print_json(rows)

    return Console().print(bench_report(name, rows))


def _write_random(shape: str, where: Path, console: Console, as_json: bool, **options: Any) -> None:
    check_shape(shape, options["loops"], options["rank"], options["merge_adapters"])
    with importing():
        from rrt_edge.exporters.shapes import random_bundle

    with progress_bar(console, not as_json) as progress:
        random_bundle(shape, where, progress=progress, **options)


def _measure(bundle: Path, settings: dict[str, Any], console: Console, as_json: bool) -> list[dict[str, Any]]:
    """The rows, from a process of its own: this one's memory and threads are not to be measured."""

    command = [sys.executable, "-P", "-m", "rrt_edge.runtime.measuring.bench", str(bundle), json.dumps(settings)]
    apart: dict[str, Any] = {"start_new_session": True}  # Ctrl-C is for this process, which ends the other
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8", **apart)
    with process, progress_bar(console, not as_json) as progress:
        try:
            rows = _rows(process, progress)
        except BaseException:
            process.kill()
            raise
    if rows is None:
        raise RRTEdgeError(f"{bundle}: the measuring process ended without a result (status {process.returncode})")
    return rows


def _rows(process: subprocess.Popen[str], progress: Progress | None) -> list[dict[str, Any]] | None:
    """What the measuring process says in the end, or None.

    Raises:
        RRTEdgeError: as it did.
    """
    assert process.stdout is not None
    rows: list[dict[str, Any]] | None = None
    for line in process.stdout:
        report = json.loads(line)
        if "error" in report:
            raise getattr(errors, report["error"]["type"], RRTEdgeError)(report["error"]["message"])
        if "rows" in report:
            rows = report["rows"]
        elif progress is not None:
            progress(report["done"], report["total"], report["what"])
    return rows


BAR = 30  # characters of the fastest test's bar


def bench_report(name: str, rows: list[dict[str, Any]]) -> Group:
    """Return a table of what `bench` measured, and bars of the speeds, prefill and decode on scales of their own."""
    first = rows[0]
    facts = f"{size(first['bundle_bytes'])}, {first['threads']} threads, loaded in {first['load_s']:.2f} s"
    facts += "" if first["device"] == "cpu" else f" on {first['device']}"
    title = Text(f"{name}: {facts}, peak memory {size(first['peak_memory_bytes'])}")
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))  # narrow, for a name in one line
    table.add_column("test", overflow="fold", vertical="bottom")
    for column in ("tokens/s", "spread", "depth", "rows/\ntoken", "steps/\ntoken", "ttft", "band-\nwidth"):
        table.add_column(column, justify="right", no_wrap=True, vertical="bottom")
    plot = Table(box=None, pad_edge=False, show_header=False)
    plot.add_column(overflow="fold")
    plot.add_column(no_wrap=True, min_width=BAR)
    plot.add_column(justify="right", no_wrap=True)
    fastest = {kind: max(_speeds(rows, kind), default=1.0) for kind in ("prefill", "decode")}
    for row in rows:
        test = f"{row['test']} (simulated)" if row["simulated"] else row["test"]
        speed, share = row["tokens_per_second"], row["tokens_per_second"] / fastest[row["test"].partition(":")[0]]
        table.add_row(
            test.replace(" ", "\n"),
            f"{speed:.1f}",
            f"{row['spread']:.0%}",
            f"{row['mean_depth']:.2f}",
            f"{row['block_rows_per_token']:.2f}",
            f"{row['steps_per_token']:.2f}",
            f"{row['ttft_s']:.2f} s",
            f"{row['bandwidth_share']:.0%}",
        )
        plot.add_row(test, "█" * max(1, round(BAR * share)), f"{speed:.1f}")
    return Group(title, "", table, "", plot)


def _speeds(rows: list[dict[str, Any]], kind: str) -> list[float]:
    return [row["tokens_per_second"] for row in rows if row["test"].startswith(kind)]
