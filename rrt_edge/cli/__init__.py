"""The command line: one subcommand for each arrow of the way from a checkpoint to text."""

from __future__ import annotations

import click

from rrt_edge.cli.bench import bench
from rrt_edge.cli.calibrate import calibrate
from rrt_edge.cli.chat.command import chat
from rrt_edge.cli.completion import completion
from rrt_edge.cli.convert import convert
from rrt_edge.cli.devices import devices
from rrt_edge.cli.doctor import doctor
from rrt_edge.cli.eval import evaluate
from rrt_edge.cli.export import export
from rrt_edge.cli.generate import generate
from rrt_edge.cli.inspect import inspect
from rrt_edge.cli.list import list_bundles
from rrt_edge.cli.pull import pull
from rrt_edge.cli.rm import remove
from rrt_edge.cli.serve import serve
from rrt_edge.cli.train import train
from rrt_edge.cli.verify import verify
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
