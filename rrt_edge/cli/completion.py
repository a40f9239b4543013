"""`completion`: the script that lets a shell complete commands, options, and the names of installed bundles."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from rrt_edge.cli.common import guarded
from rrt_edge.cli.help import command

PROGRAM = "rrt-edge"
VARIABLE = "_RRT_EDGE_COMPLETE"  # as click derives it from the program's name


@command(epilog="Example: rrt-edge completion bash > completion.bash")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@guarded
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    Put it where the shell looks for completions:

    \b
    bash  ~/.local/share/bash-completion/completions/rrt-edge
    zsh   a file _rrt-edge in a folder of $fpath
    fish  ~/.config/fish/completions/rrt-edge.fish

    Or have the shell's startup file evaluate it: eval "$(rrt-edge completion bash)"
    """
    kind = get_completion_class(shell)
    assert kind is not None  # click's own, for each of the choices
    script = kind(click.get_current_context().find_root().command, {}, PROGRAM, VARIABLE).source()
    click.echo(script.encode(), nl=False)  # as bytes: Windows would turn its line ends into ones no shell reads
