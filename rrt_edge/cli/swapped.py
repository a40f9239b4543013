"""Arguments in each other's place: what was meant, where one of them is what another should be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

LONGEST = 1000  # characters; no path is as long


def swapped(context: click.Context) -> str:
    """What to do where a command's first argument is not what it reads, but another is; else nothing."""
    arguments = [param for param in context.command.params if isinstance(param, click.Argument)]
    values = list(_values(context))
    if len(values) < 2 or not arguments:
        return ""
    wanted = getattr(arguments[0].type, "reads", {"checkpoint"})
    (_, first), *others = values
    first = getattr(first, "text", first)  # of what stands in the place of a path that was not found
    if _kind(first) in wanted:
        return ""
    for flag, other in others:
        found = _kind(other)
        if found in wanted:
            names = [param.human_readable_name for param in arguments]
            usage = " ".join([context.command_path, *names, *([flag, flag.strip("-").upper()] if flag else [])])
            return f"{other} is a {found}: are the two swapped? {usage}"
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


def _kind(value: Any) -> str | None:
    """Whether a text or path is that of a bundle or of a checkpoint."""
    from rrt_edge.runtime.library.store import installed_names

    text = str(value)
    if value is None or len(text) > LONGEST:
        return None
    try:
        path = Path(text)
        if (path / "manifest.json").is_file():
            return "bundle"
        if (path / "config.json").is_file() or (path.suffix == ".gguf" and path.is_file()):
            return "checkpoint"
        return "bundle" if text in installed_names() else None
    except (OSError, ValueError):
        return None
