"""`devices`: what onnxruntime can run bundles on here."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from rrt_edge.cli.common import guarded, json_option, print_json
from rrt_edge.cli.help import command
from rrt_edge.cli.terminal import size

if TYPE_CHECKING:
    from rich.table import Table

    from rrt_edge.runtime.running.devices.finding import Device


@command(epilog="Example: rrt-edge devices")
@json_option
@guarded
def devices(as_json: bool) -> None:
    """List what onnxruntime can run bundles on here, and what is missing for the others.

    Each device is tried with a small sum, in a process of its own.
    """
    from rrt_edge.runtime.running.devices.choice import tried_devices

    tried = tried_devices()
    if as_json:
        return print_json({"devices": [_facts(device) for device in tried]})
    console = Console()
    console.print(_table([device for device in tried if device.usable]))
    for device in tried:
        if not device.usable:
            console.print(Text(device.problem or device.name, style="dim"))
    return None


def _facts(device: Device) -> dict[str, Any]:
    facts = {**dataclasses.asdict(device), "memory_bytes": device.memory_bytes}
    del facts["pci"]
    return facts


def _table(devices: list[Device]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("device", "hardware", "memory", "provider"):
        table.add_column(column, overflow="fold")
    for device in devices:
        memory = "" if device.memory_bytes is None else size(device.memory_bytes)
        hardware = f"{device.hardware} (software)" if device.software else device.hardware
        table.add_row(device.name, Text(hardware), memory, device.provider)
    return table
