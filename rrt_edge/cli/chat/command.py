"""`chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from rrt_edge.cli.common import BundlePath, guarded
from rrt_edge.cli.help import command
from rrt_edge.cli.options import (
    load_model,
    load_options,
    read_sampling,
    read_variables,
    reply_options,
    sampling_options,
)
from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rrt_edge.cli.chat.keys import Keyboard
    from rrt_edge.runtime import Model, Session


@command(
    extra="chat takes a bundle alone; rrt-edge generate BUNDLE PROMPT answers one prompt",
    epilog="Example: rrt-edge chat bundle --show-depth",
)
@click.argument("bundle", type=BundlePath())
@click.option("--system", default="", help="A system message: tells the model how to behave.")
@click.option("--plain", is_flag=True, help="Show replies as they are written, not rendered as Markdown.")
@sampling_options(without={"n", "logprobs", "first_loop"})
@reply_options
@load_options()
@guarded
def chat(
    bundle: Path, exit_policy: str | None, show_depth: bool, lazy_prompt: bool | None, context_full: Any,
    system: str, plain: bool, **values: Any,
) -> None:  # fmt: skip
    """Talk with a bundle in the terminal; lines from a pipe are answered one by one."""
    from rrt_edge.cli.chat.commands import execute
    from rrt_edge.cli.chat.conversation import Chat

    fields, variables = read_sampling(values), read_variables(values)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    console = Console(highlight=False)
    with console.status("loading the bundle") if interactive else nullcontext():
        loaded = load_model(bundle, values)
    with loaded as model:
        if model.template is None:
            raise BadInputError(f"{bundle}: has no chat template; try: rrt-edge generate {bundle} --raw PROMPT")

        def new_session() -> Session:
            return model.session(lazy_prompt=lazy_prompt)

        status = Chat(
            model, new_session, console, model.sampling(**fields), exit_policy,
            execute=execute, keyboard=_keyboard(model) if interactive else None,
            show_depth=show_depth, plain=plain, system=system, context_full=context_full,
            chat_template_kwargs=variables,
        ).run()  # fmt: skip
    click.get_current_context().exit(status)


def _keyboard(model: Model) -> Keyboard:
    """The line editor, which completes the slash commands."""
    from rrt_edge.cli.chat.commands import COMMANDS, choices
    from rrt_edge.cli.chat.keys import Keyboard

    return Keyboard({name: command.does for name, command in COMMANDS.items()}, choices(model))
