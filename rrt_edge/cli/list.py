"""`list`: the bundles this user has installed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from rich.console import Console

from rrt_edge.cli.common import complain, guarded, json_option, print_json
from rrt_edge.cli.help import command
from rrt_edge.cli.terminal import size
from rrt_edge.runtime.errors import RRTEdgeError, one_line

if TYPE_CHECKING:
    from rich.table import Table

    from rrt_edge.runtime.library.store import Installed

LONGEST_SOURCE = 300  # characters that are shown


@command("list", epilog="Example: rrt-edge list")
@json_option
@guarded
def list_bundles(as_json: bool) -> None:
    """List the installed bundles."""
    from rrt_edge.runtime.library.store import bundles_folder, installed, leftovers, size_of

    bundles, killed = installed(), leftovers()
    left = sum(map(size_of, killed))
    if as_json:
        payload = {"folder": str(bundles_folder()), "bundles": [bundle.facts() for bundle in bundles]}
        return print_json({**payload, "leftover_bytes": left} if killed else payload)
    if killed:
        click.echo(f"commands that were killed left {size(left)}; the next rrt-edge pull deletes it", err=True)
    if not bundles:
        return click.echo(f"no bundles in {bundles_folder()}; rrt-edge pull gets one")
    Console().print(_table(bundles))
    for bundle in bundles:
        if bundle.problem:
            complain(
                RRTEdgeError(), f"{bundle.problem}; pull it again with --force, or rrt-edge rm {bundle.name}", False
            )
    return None


def _table(bundles: list[Installed]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    from rrt_edge.runtime.library.origin import origin_of

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    origins = {bundle.name: origin_of(bundle.folder) for bundle in bundles}
    exported = any(origins.values())
    for column in ("name", "size", "family", "loops", "bits", "exit gate", *(["exported from"] if exported else [])):
        number = column in ("size", "loops", "bits")
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    for bundle in bundles:
        if bundle.problem or bundle.manifest is None:
            table.add_row(bundle.name, size(bundle.bytes), "damaged", style="red")
            continue
        shape, gate = bundle.manifest.architecture, bundle.manifest.gate
        gate_text = "none" if gate.kind == "none" else "trained" if gate.trained else "not trained"
        gate_text += ", calibrated" if gate.threshold is not None or gate.points else ""
        bits = bundle.manifest.quantization.bits
        origin = origins[bundle.name]
        source = () if not exported else ("" if origin is None else escape(one_line(origin.source, LONGEST_SOURCE)),)
        table.add_row(bundle.name, size(bundle.bytes), shape.family, str(shape.loops), str(bits), gate_text, *source)
    return table
