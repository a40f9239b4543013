"""The keyboard of the chat: the editor at the prompt, and Ctrl-C while a reply streams."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.filters import Condition
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from rrt_edge.runtime.system.home import HOME

MENU = 10  # rows of the list of completions at most


def history_path() -> Path:
    """Return the file that keeps what was typed: in RRT_EDGE_HOME, or in the user's folder for such things."""
    home = os.environ.get(HOME)
    return (Path(home).expanduser() if home else user_state_path("rrt-edge")) / "chat_history"


def open_history(path: Path) -> History:
    """The history in a file that only the user can read, or one in memory where there can be no file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return FileHistory(path)
    except OSError:
        return InMemoryHistory()


class Commands(Completer):
    """Completes slash commands, and what stands behind them.

    Args:
        commands: what each does, by its name with the slash.
        choices: what may follow a command; `None` stands for the name of a file.
    """

    def __init__(self, commands: Mapping[str, str], choices: Mapping[str, tuple[str, ...] | None]) -> None:
        self._commands, self._choices = commands, choices
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/") or "\n" in text:
            return
        name, space, argument = text.partition(" ")
        if not space:
            for command, does in self._commands.items():
                if command.startswith(name):
                    yield Completion(command, -len(name), display_meta=does)
            return
        choices = self._choices.get(name, ())
        if choices is None:
            yield from self._paths.get_completions(Document(argument), complete_event)
            return
        for choice in choices:
            if choice.startswith(argument):
                yield Completion(choice, -len(argument))


def _bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c", filter=Condition(lambda: bool(get_app().current_buffer.text)))
    def _clear(event: KeyPressEvent) -> None:
        event.current_buffer.reset()

    return keys


class Keyboard:
    """Reads messages of several lines: Enter sends, Alt-Enter or Ctrl-J breaks the line.

    Args:
        commands, choices: as for `Commands`.
    """

    def __init__(self, commands: Mapping[str, str], choices: Mapping[str, tuple[str, ...] | None]) -> None:
        self._session: PromptSession[str] = PromptSession(
            HTML("<b>&gt; </b>"),
            multiline=True,
            prompt_continuation="  ",
            key_bindings=_bindings(),
            history=open_history(history_path()),
            completer=Commands(commands, choices),
            complete_while_typing=Condition(lambda: get_app().current_buffer.text.startswith("/")),
            enable_suspend=True,
        )

    def read(self) -> str:
        """The next message.

        Raises:
            EOFError: Ctrl-D.
            KeyboardInterrupt: Ctrl-C where there was nothing to clear.
        """
        rows = shutil.get_terminal_size().lines - 2
        return self._session.prompt(reserve_space_for_menu=max(0, min(MENU, rows)))


class Stop:
    """Whether a reply is to stop: the first Ctrl-C asks for it, so that it ends behind a whole token.

    Before the first token (a long prompt may take its time), and at a second Ctrl-C, it breaks off at once.
    """

    def __init__(self) -> None:
        self._asked = Event()
        self._started = False

    def asked(self) -> bool:
        """To be called for each token."""
        self._started = True
        return self._asked.is_set()

    def on_signal(self, *_: object) -> None:
        if self._asked.is_set() or not self._started:
            raise KeyboardInterrupt
        self._asked.set()


@contextmanager
def stoppable() -> Iterator[Stop]:
    """Ctrl-C stops what runs inside; other keys do not show, and wait for the prompt.

    Raises:
        KeyboardInterrupt: inside, as `Stop` says.
    """
    stop = Stop()
    before = signal.signal(signal.SIGINT, stop.on_signal)
    restore = _silence()
    try:
        yield stop
    finally:
        restore()
        signal.signal(signal.SIGINT, before)


def _silence() -> Callable[[], None]:
    """Keep pressed keys off the screen, and Enter as the prompt will expect it; returns what ends it."""
    if sys.platform == "win32":  # shows keys only where they are read
        return lambda: None
    import termios

    try:
        before: list[Any] = termios.tcgetattr(sys.stdin)
    except (OSError, ValueError, termios.error):  # not a terminal
        return lambda: None
    silent = list(before)
    silent[0] &= ~termios.ICRNL
    silent[3] &= ~(termios.ECHO | termios.ICANON)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, silent)
    return lambda: termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
