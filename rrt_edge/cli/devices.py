"""`devices`: what onnxruntime can run bundles on here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from rrt_edge.cli.common import guarded, json_option, print_json
from rrt_edge.cli.terminal import size

if TYPE_CHECKING:
    from rich.table import Table

    from rrt_edge.runtime.running.devices.finding import Device


@click.command(epilog="Example: rrt-edge devices")
@json_option
@guarded
def devices(as_json: bool) -> None:
    """List what onnxruntime can run bundles on here, and what is missing for the others.

    Each device is tried with a small sum, in a process of its own.
    """
    from rrt_edge.runtime.running.devices.choice import tried_devices

    found = tried_devices()
    if as_json:
        return print_json({"devices": [_facts(one) for one in found]})
    console = Console()
    console.print(_table([one for one in found if one.usable]))
    for one in found:
        if not one.usable:
            console.print(Text(one.problem or one.name, style="dim"))
    return None


def _facts(device: Device) -> dict[str, Any]:
    told = {**dataclasses.asdict(device), "memory_bytes": device.memory_bytes}
    del told["pci"]
    return told


def _table(found: list[Device]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("device", "hardware", "memory", "provider"):
        table.add_column(column, overflow="fold")
    for one in found:
        memory = "" if one.memory_bytes is None else size(one.memory_bytes)
        hardware = f"{one.hardware} (software)" if one.software else one.hardware
        table.add_row(one.name, Text(hardware), memory, one.provider)
    return table
