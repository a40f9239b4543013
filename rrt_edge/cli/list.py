"""`list`: the bundles this user has installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console

from rrt_edge.cli.common import complain, guarded, json_option, print_json
from rrt_edge.cli.terminal import size
from rrt_edge.runtime.errors import RRTEdgeError

if TYPE_CHECKING:
    from rich.table import Table

    from rrt_edge.runtime.library.store import Installed


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
