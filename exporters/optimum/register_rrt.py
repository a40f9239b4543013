"""`optimum-cli export rrt`: optimum finds this file by its place, `optimum.commands.register`."""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


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
        parser.add_argument("--bits", default="4", choices=["4", "8", "16", "32"], help="Of the weights.")
        parser.add_argument("--kv-bits", default="32", choices=["8", "32"], help="Of keys and values while running.")
        parser.add_argument("--loops", default="2", help="For a source that is not recursive; 1: unshared.")
        parser.add_argument("--init", default="average", choices=["average", "stepwise", "lower", "random"])
        parser.add_argument("--rank", default="0", help="For a source that is not recursive.")

    def run(self) -> None:
        from rrt_edge.cli import main

        given = self.args
        options = [
            f"--{name.replace('_', '-')}={getattr(given, name)}" for name in ("bits", "kv_bits", "loops", "init")
        ]
        main(args=["export", given.model, given.output, *options, f"--rank={given.rank}"], prog_name="rrt-edge")


REGISTER_COMMANDS = [(RRTExportCommand, ExportCommand)]
