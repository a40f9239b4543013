"""A group of commands each of which is imported when it is needed."""

from __future__ import annotations

import errno
import importlib
import io
import sys
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from rrt_edge.cli.interrupts import STATUS, from_interrupt, importing, interrupted_line, interruptible, take_charge

Homes = Mapping[str, tuple[str, str]]  # name: "module:function" in a package, and a line of help
ELSEWHERE = {  # what other programs call what is here
    "help": "COMMAND --help", "version": "--version", "ls": "list", "ps": "list", "show": "inspect", "info": "inspect",
    "install": "pull", "download": "pull", "remove": "rm", "delete": "rm", "uninstall": "rm", "quantize": "export",
    "benchmark": "bench", "finetune": "train", "evaluate": "eval", "check": "doctor",
}  # fmt: skip
Sections = Mapping[str, Homes]  # by the heading of the help under which they stand


class _Imported(MutableMapping[str, click.Command]):
    """The commands by name."""

    def __init__(self, package: str, homes: Homes) -> None:
        self._package, self._homes = package, dict(homes)

    def __getitem__(self, name: str) -> click.Command:
        module, _, function = self._homes[name][0].partition(":")
        with importing():
            command: click.Command = getattr(importlib.import_module(f"{self._package}.{module}"), function)
        return command

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def __contains__(self, name: object) -> bool:
        return name in self._homes

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError("commands are named where the group is made")

    def __delitem__(self, name: str) -> None:
        raise TypeError("commands are named where the group is made")


def _take_any_text() -> None:
    """Let bytes that are no text come in, where the tokenizer tells of them, and show what the console can say."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


class Commands(click.Group):
    """Lists its commands without importing them; an interrupted one ends with one line."""

    def __init__(self, *args: Any, package: str, homes: Sections, **options: Any) -> None:
        super().__init__(*args, **options)
        self._sections = homes
        self._homes = {name: home for section in homes.values() for name, home in section.items()}
        self.commands = _Imported(package, self._homes)

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._homes)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is asked for, and its arguments; a word of other programs is told ours."""
        if args[0] in ELSEWHERE and args[0] not in self.commands:
            ctx.fail(f"No such command '{args[0]}'; rrt-edge {ELSEWHERE[args[0]]} is what does it here.")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, self._homes))
        for heading, homes in self._sections.items():
            with formatter.section(heading):
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in homes.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem[str]]:
        """The commands with their lines, whole, and the group's options."""
        options = super(click.Group, self).shell_complete(ctx, incomplete)
        fitting = [(name, line) for name, (_, line) in self._homes.items() if name.startswith(incomplete)]
        return [CompletionItem(name, help=line) for name, line in fitting] + options

    def main(self, args: Sequence[str] | None = None, *more: Any, **options: Any) -> Any:
        """Run a command; what the system refuses, the last output included, is one line and status 1."""
        arguments = sys.argv[1:] if args is None else args
        _take_any_text()
        if args is None:
            take_charge()
        try:
            try:
                return super().main(args, *more, **options)
            finally:
                if sys.stdout is not None:  # closed by who started us
                    sys.stdout.flush()
        except Exception as error:
            from rrt_edge.cli.outputs import give_up
            from rrt_edge.runtime.system.files import system_code

            code = system_code(error)
            of_the_system = isinstance(error, OSError) or code is not None
            if not of_the_system or code == errno.EPIPE or "--debug" in arguments:
                raise
            give_up(error, "--json" in arguments)

    def invoke(self, ctx: click.Context) -> Any:
        as_json = "--json" in ctx.args
        try:
            with interruptible():
                return super().invoke(ctx)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, click.exceptions.Exit) or not from_interrupt(error):
                raise
            click.echo(interrupted_line(as_json), err=True, nl=False)
            ctx.exit(STATUS)
