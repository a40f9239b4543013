"""The slash commands of the chat."""

from __future__ import annotations

import base64
import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from rrt_edge.cli.chat.file import load_chat, save_chat
from rrt_edge.cli.terminal import legend, size, two_columns
from rrt_edge.runtime.decoding.exit_policy import offered
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.loaded import insides

if TYPE_CHECKING:
    from rrt_edge.cli.chat.conversation import Chat
    from rrt_edge.runtime import Model

Action = Callable[["Chat", str], None]
SWITCH = ("on", "off")


@dataclass(frozen=True)
class Command:
    """A command: `argument` is empty, NAME, or [NAME] where it may be left out."""

    argument: str
    does: str
    action: Action


COMMANDS: dict[str, Command] = {}


def command(usage: str, does: str) -> Callable[[Action], Action]:
    """Enter a function into `COMMANDS`."""
    name, _, argument = usage.partition(" ")

    def enter(action: Action) -> Action:
        COMMANDS[name] = Command(argument, does, action)
        return action

    return enter


def execute(chat: Chat, line: str) -> None:
    """Run a line like `/save FILE`.

    Raises:
        BadInputError: there is no such command, or what stands behind it is wrong.
        EOFError: the chat is to end.
    """
    name, *rest = line.split(maxsplit=1)
    argument = rest[0].strip() if rest else ""
    command = COMMANDS.get(name)
    if command is None:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.7)
        hint = f"did you mean {near[0]}?" if near else "/help lists them"
        raise BadInputError(f"{name} is not a command; {hint}")
    optional = command.argument.startswith("[")
    if bool(argument) != bool(command.argument) and not optional:
        raise BadInputError(f"{name}: write {name} {command.argument}".rstrip())
    command.action(chat, argument)


def choices(model: Model) -> dict[str, tuple[str, ...] | None]:
    """Return what may follow each command, for completion; None stands for the name of a file."""
    exits = insides(model).exits
    depths = tuple(map(str, exits.readable))
    files = dict.fromkeys(("/save", "/load"))
    policies = tuple(offered(exits))
    return {**files, "/depth": depths, "/policy": policies, "/depth-view": SWITCH, "/plain": SWITCH}


@command("/help", "this list")
def _help(chat: Chat, _: str) -> None:
    table = Table.grid(padding=(0, 2))
    for name, entry in COMMANDS.items():
        table.add_row(Text(f"{name} {entry.argument}"), entry.does)
    chat.console.print(table)
    if chat.keyboard:
        chat.console.print(
            "Enter sends, Alt-Enter or Ctrl-J breaks the line. Ctrl-C stops a reply, Ctrl-D leaves.\n"
            "A message that begins with / needs a space before it."
        )


@command("/retry", "answer the last message again, with another seed if it samples")
def _retry(chat: Chat, _: str) -> None:
    chat.retry()


@command("/undo", "forget the last message and its reply")
def _undo(chat: Chat, _: str) -> None:
    dropped = chat.undo()
    chat.notice(f"forgot: {_shortened(dropped)}")


@command("/reset", "forget the conversation, but for the system message")
def _reset(chat: Chat, _: str) -> None:
    chat.replace_messages([message for message in chat.messages if message["role"] == "system"])
    chat.notice("conversation forgotten")


@command("/system [TEXT]", "tell the model how to behave; without TEXT, no longer")
def _system(chat: Chat, text: str) -> None:
    chat.set_system(text)
    chat.notice("system message set" if text else "no system message")


@command("/save FILE", "write the conversation to a file")
def _save(chat: Chat, name: str) -> None:
    path = Path(name).expanduser()
    save_chat(path, chat.messages)
    chat.notice(f"{_messages(chat.messages)} written to {path}")


@command("/load FILE", "go on with a conversation from a file")
def _load(chat: Chat, name: str) -> None:
    path = Path(name).expanduser()
    loaded = load_chat(path)
    chat.replace_messages(loaded)
    chat.notice(f"{_messages(loaded)} read from {path}")
    for message in loaded[-2:]:
        chat.notice(f"{message['role']}: {_shortened(message['content'])}")


@command("/copy", "copy the last reply to the clipboard")
def _copy(chat: Chat, _: str) -> None:
    reply = next((message["content"] for message in reversed(chat.messages) if message["role"] == "assistant"), None)
    if reply is None:
        raise BadInputError("/copy: there is no reply yet")
    if not chat.keyboard:
        raise BadInputError("/copy: needs a terminal, whose clipboard it fills")
    content = base64.b64encode(reply.encode()).decode()
    chat.console.file.write(f"\x1b]52;c;{content}\x07")  # OSC 52 of xterm, which most terminals know
    chat.console.file.flush()
    chat.notice(f"{len(reply)} characters sent to the terminal's clipboard")


@command("/full", "give every token all loops")
def _full(chat: Chat, _: str) -> None:
    _policy(chat, "full")


@command("/depth N", "give every token N loops")
def _depth(chat: Chat, number: str) -> None:
    _policy(chat, f"depth={number}")


@command("/threshold [T]", "let tokens leave where the gate reaches T; without T, as calibrated")
def _threshold(chat: Chat, number: str) -> None:
    _policy(chat, f"threshold={number}" if number else "threshold")


@command("/policy TEXT", "any other exit policy, such as lossless")
def _policy(chat: Chat, text: str) -> None:
    chat.set_policy(text)
    chat.notice(f"exit policy {text}")


@command("/depth-view on|off", "shade each token by the depth it left at")
def _depth_view(chat: Chat, text: str) -> None:
    chat.show_depth = _switched("/depth-view", text)
    if chat.show_depth and chat.keyboard:
        chat.console.print(legend(chat.model.loops, chat.console))
    elif not chat.show_depth:
        chat.notice("depths are not shown")


@command("/plain on|off", "show replies as written, not rendered as Markdown")
def _plain(chat: Chat, text: str) -> None:
    chat.plain = _switched("/plain", text)
    chat.notice("replies are shown as they are written" if chat.plain else "replies are rendered as Markdown")


@command("/stats", "speed and depth of the last reply")
def _stats(chat: Chat, _: str) -> None:
    stats, model = chat.session.stats, chat.model
    rows = [
        ("exit policy", chat.exit_policy),
        ("prompt", f"{stats.prompt_tokens} tokens, {stats.prompt_tokens_per_second:.1f} tokens/s"),
        ("reply", f"{stats.generated_tokens} tokens, {stats.decode_tokens_per_second:.1f} tokens/s"),
        ("time to first token", f"{stats.time_to_first_token_s:.3f} s"),
        ("longest gap between tokens", f"{stats.longest_gap_s:.3f} s"),
        ("mean depth", f"{stats.mean_depth:.2f} of {model.loops}"),
        ("block rows per token", f"{stats.block_rows_per_token:.2f}"),
        ("steps per token", f"{stats.steps_per_token:.2f}"),
        *((("drafts that stood", f"{stats.accepted} of {stats.drafted}"),) if stats.drafted else ()),
        *((("of them from the text", f"{stats.text_accepted} of {stats.text_drafted}"),) if stats.text_drafted else ()),
        ("context", f"{stats.prompt_tokens + stats.generated_tokens} of {model.context} tokens"),
        ("device", stats.device),
        ("KV rule", stats.kv_rule),
        ("peak memory", size(stats.peak_memory_bytes)),
    ]
    chat.console.print(two_columns("last reply", rows))


@command("/exit", "leave")
def _exit(chat: Chat, _: str) -> None:
    raise EOFError


def _switched(name: str, text: str) -> bool:
    if text not in SWITCH:
        raise BadInputError(f"{name} {text}: write {name} on or {name} off")
    return text == "on"


def _messages(messages: list[dict[str, str]]) -> str:
    return f"{len(messages)} message{'' if len(messages) == 1 else 's'}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."
