"""`pull`: install a bundle."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console

from rrt_edge.cli.common import complain, guarded, json_option, print_json
from rrt_edge.cli.help import command
from rrt_edge.cli.terminal import size
from rrt_edge.runtime.errors import RRTEdgeError


@command(
    extra="a short name goes behind --name: rrt-edge pull SOURCE --name {extra}",
    epilog="Example: rrt-edge pull build/demo/bundle --name demo",
)
@click.argument("source")
@click.option("--name", help="Short name of the bundle.  [default: that of the folder, archive or repository]")
@click.option("--sha256", help="The archive's SHA-256; needed with an address.")
@click.option("--revision", help="Branch, tag or commit of a Hugging Face repository.")
@click.option("--force", is_flag=True, help="Replace an installed bundle of that name.")
@json_option
@guarded
def pull(source: str, name: str | None, sha256: str | None, revision: str | None, force: bool, as_json: bool) -> None:
    """Install a bundle under a short name, which other commands then take.

    SOURCE is a bundle's folder, a .zip or .tar.gz of one, the https address of such an archive, or a Hugging Face
    repository OWNER/NAME. Every hash is checked before the bundle appears; an interrupted download goes on when it is
    pulled again.
    """
    from rrt_edge.runtime.library.store import pull as run

    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # our own lines say what its warnings would
    try:
        with _bytes_bar(Console(stderr=True), not as_json) as progress:
            bundle = run(source, name, sha256=sha256, revision=revision, force=force, progress=progress)
    except KeyboardInterrupt:
        complain(RRTEdgeError(), "interrupted; nothing was installed, the same pull goes on from here", as_json)
        click.get_current_context().exit(130)
    if as_json:
        return print_json(bundle.facts())
    return click.echo(f"{bundle.name}: {size(bundle.bytes)} in {bundle.folder}; try rrt-edge chat {bundle.name}")


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
