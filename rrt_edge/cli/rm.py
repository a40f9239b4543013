"""`rm`: delete installed bundles."""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem

from rrt_edge.cli.common import guarded, json_option, print_json
from rrt_edge.cli.help import command
from rrt_edge.cli.terminal import size
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    from rrt_edge.runtime.library.store import installed_names

    return [CompletionItem(name) for name in installed_names() if name.startswith(incomplete)]


@command("rm", epilog="Example: rrt-edge rm demo")
@click.argument("names", nargs=-1, required=True, metavar="NAME...", shell_complete=_names)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@guarded
def remove(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Delete installed bundles."""
    from rrt_edge.runtime.library.store import find_installed
    from rrt_edge.runtime.library.store import remove as run

    bundles = [find_installed(name) for name in dict.fromkeys(names)]
    if not yes:
        sizes = ", ".join(f"{bundle.name} ({size(bundle.bytes)})" for bundle in bundles)
        if not _confirmed(f"Delete {sizes}?"):
            raise RRTEdgeError(f"{', '.join(bundle.name for bundle in bundles)}: kept, as was answered")
    freed = {bundle.name: run(bundle.name) for bundle in bundles}
    if as_json:
        return print_json({"removed": list(freed), "bytes": sum(freed.values())})
    return click.echo(f"removed {', '.join(freed)}: {size(sum(freed.values()))}")


def _confirmed(question: str) -> bool:
    """Whether the answer is yes: of a person at the terminal, or of a pipe.

    Raises:
        BadInputError: there is nobody to answer.
    """
    if sys.stdin is not None and sys.stdin.isatty():
        return click.confirm(question, err=True)
    answer = "" if sys.stdin is None else sys.stdin.readline()
    if not answer:
        raise BadInputError("nobody to ask here; say --yes to delete")
    return answer.strip().lower() in ("y", "yes")
