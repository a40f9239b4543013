"""`devices`, and the options that say where a bundle runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.text import Text

from rrt_edge.cli.common import Command, guarded, json_option, print_json
from rrt_edge.runtime.running.devices.providers import DEVICES, VARIABLE, device_for

if TYPE_CHECKING:
    from rich.table import Table

    from rrt_edge.runtime.running.devices.finding import Device

device_option = click.option(
    "--device",
    type=click.Choice(DEVICES),
    envvar=VARIABLE,
    default="auto",
    show_default=True,
    help=f"What to run on (rrt-edge devices); auto: what was fastest in a trial, made once. Also in {VARIABLE}.",
)


def device_options(command: Command) -> Command:
    """`--device` and what conversations may take of its memory."""
    budget = click.option("--kv-budget", type=int, help="MiB that keys and values may take.  [default: what there is]")
    return device_option(budget(command))


def where_to_run(device: str, kv_rule: str | None, kv_budget: int | None = None) -> dict[str, Any]:
    """What `Model.load` is to be told; another KV rule than `exact` runs on the CPU, which `auto` then is."""
    return {"device": device_for(device, [kv_rule]), "kv_budget_bytes": None if kv_budget is None else kv_budget << 20}


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

    from rrt_edge.cli.terminal import size

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in ("device", "hardware", "memory", "provider"):
        table.add_column(column, overflow="fold")
    for one in found:
        memory = "" if one.memory_bytes is None else size(one.memory_bytes)
        hardware = f"{one.hardware} (software)" if one.software else one.hardware
        table.add_row(one.name, Text(hardware), memory, one.provider)
    return table
