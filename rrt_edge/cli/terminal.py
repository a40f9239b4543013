"""What the command line shows people: progress, sizes, and depths as colours."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from rrt_edge.runtime.errors import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from rrt_edge.runtime import Token

LONGEST_VALUE = 1000  # characters of what a table shows
SECONDS_BETWEEN_LINES = 10.0  # of progress, where there is no terminal
DEPTH_STYLES = ("green", "yellow", "dark_orange", "red")  # depth 1, 2, 3, and beyond
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


class Thoughts:
    """Shows thoughts in a terminal, dimmed and apart from the answer; what is no terminal gets answers alone."""

    def __init__(self, console: Console, shown: Callable[[Token], Text]) -> None:
        """`shown`: how the text of a token looks."""
        self._console, self._shown, self._open = console, shown, False

    def add(self, token: Token) -> None:
        """To be called with each token, before its own text is shown."""
        if token.thought and self._console.is_terminal:
            text = self._shown(dataclasses.replace(token, text=token.thought))
            text.stylize("dim")
            self._console.print(text, end="", soft_wrap=True)
            self._open = True
        if token.text and self._open:
            self._console.print("\n")
            self._open = False


@contextmanager
def progress_bar(
    console: Console, shown: bool, every: float = SECONDS_BETWEEN_LINES
) -> Iterator[Callable[[int, int, str], None] | None]:
    """A callback that draws a progress bar, or None where nothing is to be shown.

    What is no terminal gets a line each so many seconds, none of work that is done sooner.
    """
    if not shown:
        yield None
        return
    if not console.is_terminal:
        yield _lines(console, every)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def advance(done: int, total: int, what: str) -> None:
            name = what.partition(": ")[0]
            if name not in tasks:
                tasks[name] = bars.add_task(what, total=total or None)
            bars.update(tasks[name], completed=done, description=what)

        yield advance


def _lines(console: Console, every: float) -> Callable[[int, int, str], None]:
    """A callback that prints how far the work is, at most once in so many seconds."""
    last = time.monotonic()

    def advance(done: int, total: int, what: str) -> None:
        nonlocal last
        if time.monotonic() - last >= every:
            last = time.monotonic()
            console.print(f"{done}{f' of {total}' if total else ''} {what}", markup=False, highlight=False)

    return advance


def size(count: int) -> str:
    """A number of bytes for people."""
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"


def depth_style(depth: int) -> str:
    return DEPTH_STYLES[min(depth, len(DEPTH_STYLES)) - 1]


def depth_text(token: Token, console: Console) -> Text:
    """The token's text in the colour of the depth it left at; without colours, with the depth behind it."""
    if console.color_system is not None:
        return Text(token.text, style=depth_style(token.depth))
    return Text(token.text + str(token.depth).translate(SUPERSCRIPTS) if token.text else "")


def legend(loops: int, console: Console) -> Text:
    """Which colour stands for which depth; without colours, what the small numbers are."""
    if console.color_system is None:
        return Text("the number behind a token is the depth it left at")
    text = Text("depth: ")
    for depth in range(1, loops + 1):
        text.append(f" {depth} ", style=f"{depth_style(depth)} reverse")
        text.append(" ")
    return text


def two_columns(title: str, rows: Sequence[tuple[str, object]]) -> Table:
    """A table of names and values, which may be what a file says of itself: each on one line, without markup."""
    table = Table(title=escape(title), show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(justify="right")
    for name, value in rows:
        table.add_row(*(Text(one_line(part, LONGEST_VALUE)) for part in (name, value)))
    return table
