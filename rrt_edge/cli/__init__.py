"""The command line: one subcommand for each arrow of the way from a checkpoint to text."""

from __future__ import annotations

import click

from rrt_edge.cli.checking import inspect, verify
from rrt_edge.cli.completion import completion
from rrt_edge.cli.devices import devices
from rrt_edge.cli.doctor import doctor
from rrt_edge.cli.library import list_bundles, pull, remove
from rrt_edge.cli.making import convert, export, train
from rrt_edge.cli.measuring import bench
from rrt_edge.cli.scoring import calibrate, evaluate
from rrt_edge.cli.serving import serve
from rrt_edge.cli.talking import chat, generate
from rrt_edge.runtime.system.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rrt-edge")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def main(debug: bool) -> None:
    """Relaxed Recursive Transformers for the edge: convert, train, export and run with early exit."""


for command in (convert, train, export, verify, inspect, evaluate, calibrate, generate, chat, serve, bench):
    main.add_command(command)
for command in (pull, list_bundles, remove, devices, doctor, completion):
    main.add_command(command)
