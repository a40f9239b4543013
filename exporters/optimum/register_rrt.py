"""`optimum-cli export rrt`: optimum finds this file by its place, `optimum.commands.register`."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand

from rrt_edge.exporters.options import ExportOptions
from rrt_edge.runtime.system.options import options_in


class RRTExportCommand(BaseOptimumCLICommand):
    """Hands over to `rrt-edge export`, whose checks and messages are the same."""

    COMMAND = CommandInfo(
        name="rrt", help="Export a checkpoint as an rrt-edge bundle: ONNX with a loop and early exit."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument("-m", "--model", required=True, help="Recursive or plain checkpoint: a folder or hub name.")
        parser.add_argument("output", help="The bundle's folder.")
        parser.add_argument("--task", default="text-generation", choices=["text-generation"])
        for option in options_in(ExportOptions).values():
            many: dict[str, Any] = {"action": "append"} if option.several else {}
            parser.add_argument(f"--{option.label}", dest=option.name, help=option.about.help, **many)

    def run(self) -> None:
        from rrt_edge.cli import main

        arguments = ["export", self.args.model, self.args.output]
        for option in options_in(ExportOptions).values():
            value = getattr(self.args, option.name)
            values = (value or []) if option.several else [value]
            arguments += [f"--{option.label}={each}" for each in values if each is not None]
        main(args=arguments, prog_name="rrt-edge")


REGISTER_COMMANDS = [(RRTExportCommand, ExportCommand)]
