"""`verify`: whether a bundle is right."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from rrt_edge.cli.common import BundlePath, complain, guarded, json_option, print_json, quiet_transformers
from rrt_edge.cli.help import BUNDLE, command
from rrt_edge.cli.interrupts import importing
from rrt_edge.cli.terminal import progress_bar
from rrt_edge.exporters.checks import check_verification
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.running.devices.providers import DEVICES

if TYPE_CHECKING:
    from rrt_edge.runtime.check import VerifyReport


@command(reads=(BUNDLE,), epilog="Example: rrt-edge verify bundle --source recursive --text chats.txt")
@click.argument("bundle", type=BundlePath())
@click.option("--source", help="The checkpoint the bundle came from: compares the logits at every depth.")
@click.option(
    "--text",
    type=click.Path(path_type=Path),
    help="Text of the model's domain or chats (.jsonl), 2,000 tokens or more.",
)
@click.option("--max-error", type=float, help="Allow a larger relative logit error; recorded in the manifest.")
@click.option("--max-kl", type=float, help="Allow a larger mean KL; recorded in the manifest.")
@click.option("--min-agreement", type=float, help="Allow a lower top-1 agreement; recorded in the manifest.")
@click.option("--device", type=click.Choice(DEVICES), default="cpu", show_default=True, help="What to run it on.")
@json_option
@guarded
def verify(
    bundle: Path, source: str | None, text: Path | None, max_error: float | None, max_kl: float | None,
    min_agreement: float | None, device: str, as_json: bool,
) -> None:  # fmt: skip
    """Check a bundle, alone or against its source: its hashes, that it runs, and its logits at every depth."""
    if source is None and text is not None:
        raise BadInputError("--text is compared with a source: give --source too")
    console = Console(stderr=True)
    if source is None:
        from rrt_edge.runtime.check import check

        with progress_bar(console, not as_json) as progress:
            report = check(bundle, device, progress)
    else:
        check_verification(source, text)
        with importing():
            from rrt_edge.exporters import Tolerance
            from rrt_edge.exporters import verify as run

            quiet_transformers()
        loosened = Tolerance(max_error, max_kl, min_agreement)
        with progress_bar(console, not as_json) as progress:
            report = run(bundle, source=source, text=text, loosened=loosened, device=device, progress=progress)
    if as_json:
        payload = dataclasses.asdict(report)
        tolerance = {name: value for name, value in payload["tolerance"].items() if value is not None}
        print_json(
            {**{name: payload[name] for name in ("ok", "hashes_ok", "depths", "device")}, "tolerance": tolerance}
        )
    elif report.depths:
        Console().print(verification_table(str(bundle), report))
    elif report.ok:
        click.echo(f"{bundle}: ok, hashes ok, no source compared")
    if report.problem:
        complain(RRTEdgeError(), report.problem, as_json)
    click.get_current_context().exit(0 if report.ok else 1)


def verification_table(bundle: str, report: VerifyReport) -> Table:
    """Return a table of what `verify` found, with a row for each depth."""
    verdict = "ok" if report.ok else "FAILED"
    hashes = "hashes ok" if report.hashes_ok else "hashes differ"
    compared = f"{report.positions} positions compared"
    table = Table(title=f"{bundle}: {verdict}, {hashes}, {compared}", title_justify="left")
    for name in ("depth", "largest logit error", "mean KL", "same top token"):
        table.add_column(name, justify="right")
    for row in report.depths:
        table.add_row(str(row.depth), f"{row.max_abs_logit_error:.2e}", f"{row.kl:.5f}", f"{row.top1_agreement:.2%}")
    return table
