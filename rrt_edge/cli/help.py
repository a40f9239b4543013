"""How commands show their help: options in sections, examples uncut; and what one says of an argument too many."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
BUNDLE, CHECKPOINT, RECURSIVE_CHECKPOINT = "bundle", "checkpoint", "recursive checkpoint"
OTHER = "Output and help"  # the last section: what every command has


class Command(click.Command):
    """A command whose options stand in the sections that `section` begins."""

    def __init__(self, *args: Any, extra: str = "", reads: Collection[str] = (), **settings: Any) -> None:
        """
        Args:
            extra: what to say of an argument too many, which stands in the place of {extra}.
            reads: what the first argument may be: `BUNDLE`, `CHECKPOINT`, `RECURSIVE_CHECKPOINT`.
        """
        super().__init__(*args, **settings)
        self._extra, self.reads = extra, reads

    def sections(self, ctx: click.Context) -> dict[str, list[click.Option]]:
        """The options that are shown, by their section: those without one first, what every command has last."""
        found: dict[str, list[click.Option]] = {"Options": []}
        for option in self.get_params(ctx):
            if isinstance(option, click.Option) and not option.hidden:
                where = OTHER if option.is_eager else getattr(option, "section", "Options")
                found.setdefault(where, []).append(option)
        last = found.pop(OTHER, [])
        named = {name: options for name, options in found.items() if options}
        return {**named, OTHER: last} if set(named) - {"Options"} else {"Options": [*found["Options"], *last]}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for name, options in self.sections(ctx).items():
            with formatter.section(name):
                formatter.write_dl([record for option in options if (record := option.get_help_record(ctx))])

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The example on a line of its own, however long: to be copied."""
        if self.epilog:
            formatter.write(f"\n  {self.epilog}\n")

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """
        Raises:
            click.UsageError: the arguments are not the command's.
        """
        allowed, ctx.allow_extra_args = ctx.allow_extra_args, True
        extra = super().parse_args(ctx, args)
        ctx.allow_extra_args = allowed
        if extra and not allowed and not ctx.resilient_parsing:
            remedy = self._extra.format(extra=extra[0]) if self._extra else f"quote it if it belongs to {_last(self)}"
            ctx.fail(f"{extra[0]!r} is one argument too many; {remedy}")
        return extra


command = partial(click.command, cls=Command)


def section(name: str) -> Callable[[Decorated], Decorated]:
    """A heading: the options below it, up to the next, stand under it in the help."""

    def decorate(function: Decorated) -> Decorated:
        for option in getattr(function, "__click_params__", []):  # decorators run from below
            if isinstance(option, click.Option) and not hasattr(option, "section"):
                option.section = name  # type: ignore[attr-defined]
        return function

    return decorate


def _last(command: click.Command) -> str:
    """The argument that comes last, as the usage line has it."""
    arguments = [param for param in command.params if isinstance(param, click.Argument)]
    return arguments[-1].human_readable_name if arguments else "an option"
