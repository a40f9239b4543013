"""What the commands share: one-line errors, exit statuses, JSON, bundles by path or short name."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from rrt_edge.cli.extras import extra_with
from rrt_edge.cli.help import OTHER, section
from rrt_edge.cli.interrupts import from_interrupt
from rrt_edge.cli.swapped import swapped
from rrt_edge.runtime.errors import BadInputError, BundleError, RRTEdgeError

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """`--json`, beside `--help` at the end."""
    flag = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
    return section(OTHER)(flag(command))


@dataclasses.dataclass(frozen=True)
class NotFound:
    """Stands in the place of a bundle's path until `guarded` can raise the error as all others are."""

    error: BadInputError
    text: str


class BundlePath(click.ParamType):  # type: ignore[type-arg]
    """A bundle: a folder, or the short name of an installed one. For commands that are `guarded`."""

    name = "bundle"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path | NotFound:
        from rrt_edge.runtime.library.store import find_bundle

        try:
            return find_bundle(value)
        except BundleError as error:
            return NotFound(error, str(value))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
        """Installed names with the folders here, or folders alone where no name fits."""
        from rrt_edge.runtime.library.store import installed_names

        try:
            names = [name for name in installed_names() if name.startswith(incomplete)]
            here = sorted(path.name for path in Path().iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError:
            names, here = [], []
        if not names:  # the shell itself goes down folders best
            return [CompletionItem(incomplete, type="dir")]
        folders = [name for name in here if name.startswith(incomplete) and name not in names]
        return [CompletionItem(name, help="installed") for name in names] + [CompletionItem(name) for name in folders]


UNITS = {"": 1, "s": 1, "m": 60, "h": 3600}  # seconds of a duration's units
LONGEST_DURATION = 365 * 86_400  # seconds


class Duration(click.ParamType):  # type: ignore[type-arg]
    """Seconds, as a number with a unit behind it: 90s, 10m, 2h."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", str(value))
        seconds = float(found[1]) * UNITS[found[2]] if found else -1.0
        if not 0 <= seconds <= LONGEST_DURATION:
            self.fail(f"{value!r} is no duration; write it as 90s, 10m or 2h", param, ctx)
        return seconds


def guarded(command: Command) -> Command:
    """Turn errors into one line (or a JSON object) on standard error and an exit status: 2 bad input, 1 a failure."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        context = click.get_current_context()
        as_json = bool(kwargs.get("as_json"))
        try:
            for value in kwargs.values():
                if isinstance(value, NotFound):
                    raise value.error
            return command(*args, **kwargs)
        except RRTEdgeError as error:
            if from_interrupt(error) or context.find_root().params.get("debug"):
                raise
            complain(error, _with_remedy(error, context), as_json)
            context.exit(2 if isinstance(error, BadInputError) else 1)
        except ModuleNotFoundError as error:
            if from_interrupt(error):
                raise
            complain(error, f"rrt-edge {context.info_name} needs {missing(str(error.name))}", as_json)
            context.exit(2)

    return run  # type: ignore[return-value]


def _with_remedy(error: RRTEdgeError, context: click.Context) -> str:
    """What an error says; its own remedy gives way where arguments stand in each other's place."""
    remedy = swapped(context) if isinstance(error, BadInputError) else ""
    return f"{str(error).partition('; ')[0]}; {remedy}" if remedy else str(error)


def missing(module: str) -> str:
    """That a module is not installed, and how it is."""
    package = module.partition(".")[0]
    extra = extra_with(package)
    target = package if extra is None else f"'rrt-edge[{extra}]'"
    return f"{module}, which is not installed: pip install {target}"


def complain(error: Exception, message: str, as_json: bool) -> None:
    line = " ".join(message.split())
    if as_json:
        line = json.dumps({"error": {"type": type(error).__name__, "message": line}})
    click.echo(line if as_json else f"error: {line}", err=True)


def print_json(value: Any) -> None:
    payload = dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value
    click.echo(json.dumps(payload))


def quiet_transformers() -> None:
    """Our own progress bars and reports say what transformers' would."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
