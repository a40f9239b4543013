"""`rm`: delete installed bundles."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

from rrt_edge.cli.common import guarded, json_option, print_json
from rrt_edge.cli.terminal import size
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    pass


def _names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    from rrt_edge.runtime.library.store import installed_names

    return [CompletionItem(name) for name in installed_names() if name.startswith(incomplete)]


@click.command("rm", epilog="Example: rrt-edge rm demo")
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
        if not sys.stdin.isatty():
            raise BadInputError("nobody to ask here; say --yes to delete")
        sizes = ", ".join(f"{bundle.name} ({size(bundle.bytes)})" for bundle in bundles)
        if not click.confirm(f"Delete {sizes}?", err=True):
            click.get_current_context().exit(1)
    freed = {bundle.name: run(bundle.name) for bundle in bundles}
    if as_json:
        return print_json({"removed": list(freed), "bytes": sum(freed.values())})
    return click.echo(f"removed {', '.join(freed)}: {size(sum(freed.values()))}")
