"""Arguments in each other's place: what was meant, where one of them is what another should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from rrt_edge.cli.help import BUNDLE, CHECKPOINT, RECURSIVE_CHECKPOINT, Command

LONGEST = 1000  # characters; no path is as long


def swapped(context: click.Context) -> str:
    """What to do where a command's first argument is not what it reads, but another is; else nothing."""
    from rrt_edge.runtime.library.store import is_folder

    reads = context.command.reads if isinstance(context.command, Command) else ()
    values = list(_values(context))
    if len(values) < 2 or not reads:
        return ""
    (_, first), *others = values
    first = Path(str(getattr(first, "text", first)))  # of what stands in the place of a path that was not found
    kind = _kind(first)
    if kind in reads or (kind is None and is_folder(first)):
        return ""
    for flag, other in others:
        found = _kind(Path(str(other)))
        if found in reads:
            names = [param.human_readable_name for param in context.command.params if isinstance(param, click.Argument)]
            usage = " ".join([*names, *([flag, flag.strip("-").upper()] if flag else [])])
            return f"{other} is a {found}: are the two swapped? rrt-edge {context.info_name} {usage}"
    return ""


def _values(context: click.Context) -> Iterator[tuple[str, Any]]:
    """The texts and paths that were given, arguments before options; of an option with its flag."""
    params = sorted(context.command.params, key=lambda param: isinstance(param, click.Option))
    for param in params:
        value = context.params.get(str(param.name))
        given = context.get_parameter_source(str(param.name)) is click.core.ParameterSource.COMMANDLINE
        for part in (value if isinstance(value, tuple) else (value,)) if given else ():
            if isinstance(part, str | Path) or not isinstance(param, click.Option):
                yield ("" if isinstance(param, click.Argument) else param.opts[0]), part


def _kind(path: Path) -> str | None:
    """Which of the things that commands read lies there, or is installed under that name."""
    from rrt_edge.conversion.folder import is_recursive_checkpoint
    from rrt_edge.runtime.library.store import installed_names

    if len(str(path)) > LONGEST:
        return None
    try:
        if (path / "manifest.json").is_file():
            return BUNDLE
        if (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file()):
            return RECURSIVE_CHECKPOINT if is_recursive_checkpoint(path) else CHECKPOINT
        return BUNDLE if str(path) in installed_names() else None
    except (OSError, ValueError):
        return None
