"""`list`, `pull` and `rm`: the bundles this user has installed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem
from rich.console import Console

from rrt_edge.cli.common import complain, guarded, json_option, print_json
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError

if TYPE_CHECKING:
    from rich.table import Table

    from rrt_edge.runtime.library.store import Installed


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    from rrt_edge.runtime.library.store import installed_names

    return [CompletionItem(name) for name in installed_names() if name.startswith(incomplete)]


@click.command("list", epilog="Example: rrt-edge list")
@json_option
@guarded
def list_bundles(as_json: bool) -> None:
    """List the installed bundles."""
    from rrt_edge.runtime.library.store import bundles_folder, installed

    found = installed()
    if as_json:
        return print_json({"folder": str(bundles_folder()), "bundles": [one.facts() for one in found]})
    if not found:
        return click.echo(f"no bundles in {bundles_folder()}; rrt-edge pull gets one")
    Console().print(_table(found))
    for one in found:
        if one.problem:
            complain(RRTEdgeError(), f"{one.problem}; pull it again with --force, or rrt-edge rm {one.name}", False)
    return None


def _table(found: list[Installed]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from rrt_edge.cli.terminal import size

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("name", "size", "family", "loops", "bits", "exit gate"):
        number = column in ("size", "loops", "bits")
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for one in found:
        if one.problem or one.manifest is None:
            table.add_row(one.name, size(one.bytes), "damaged", style="red")
            continue
        shape, gate = one.manifest.architecture, one.manifest.gate
        told = "none" if gate.kind == "none" else "trained" if gate.trained else "not trained"
        told += ", calibrated" if gate.threshold is not None or gate.points else ""
        bits = one.manifest.quantization.bits
        table.add_row(one.name, size(one.bytes), shape.family, str(shape.loops), str(bits), told)
    return table


@click.command(epilog="Example: rrt-edge pull build/demo/bundle --name demo")
@click.argument("source")
@click.option("--name", help="Short name of the bundle.  [default: that of the folder, archive or repository]")
@click.option("--sha256", help="The archive's SHA-256; needed with an address.")
@click.option("--revision", help="Branch, tag or commit of a Hugging Face repository.")
@click.option("--force", is_flag=True, help="Replace an installed bundle of that name.")
@json_option
@guarded
def pull(source: str, name: str | None, sha256: str | None, revision: str | None, force: bool, as_json: bool) -> None:
    """Install a bundle, which other commands then take by its short name.

    SOURCE is a bundle's folder, a .zip or .tar.gz of one, the https address of such an archive, or a Hugging Face
    repository OWNER/NAME. Every hash is checked before the bundle appears; an interrupted download goes on when it is
    pulled again.
    """
    from rrt_edge.cli.terminal import size
    from rrt_edge.runtime.library.store import pull as run

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # our own lines say what its warnings would
    try:
        with _bytes_bar(Console(stderr=True), not as_json) as progress:
            one = run(source, name, sha256=sha256, revision=revision, force=force, progress=progress)
    except KeyboardInterrupt:
        complain(RRTEdgeError(), "interrupted; nothing was installed, the same pull goes on from here", as_json)
        click.get_current_context().exit(130)
    if as_json:
        return print_json(one.facts())
    return click.echo(f"{one.name}: {size(one.bytes)} in {one.folder}; try rrt-edge chat {one.name}")


@contextmanager
def _bytes_bar(console: Console, shown: bool) -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback that draws how many bytes came and how fast, or None where nothing is to be shown."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    if not (shown and console.is_terminal):
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console, transient=True) as bars:
        task, last = bars.add_task("connecting", total=None), ""

        def advance(done: int, total: int, what: str) -> None:
            nonlocal task, last
            if what != last:  # a speed of its own
                bars.remove_task(task)
                task, last = bars.add_task(what, total=total or None, completed=done), what
            bars.update(task, completed=done, total=total or None)

        yield advance


@click.command("rm", epilog="Example: rrt-edge rm demo")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=_names)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@guarded
def remove(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete installed bundles."""
    from rrt_edge.cli.terminal import size
    from rrt_edge.runtime.library.store import find_installed
    from rrt_edge.runtime.library.store import remove as run

    found = [find_installed(name) for name in dict.fromkeys(names)]
    if not yes:
        if not sys.stdin.isatty():
            raise BadInputError("nobody to ask here; say --yes to delete")
        told = ", ".join(f"{one.name} ({size(one.bytes)})" for one in found)
        if not click.confirm(f"Delete {told}?", err=True):
            click.get_current_context().exit(1)
    freed = {one.name: run(one.name) for one in found}
    if as_json:
        return print_json({"removed": list(freed), "bytes": sum(freed.values())})
    return click.echo(f"removed {', '.join(freed)}: {size(sum(freed.values()))}")
