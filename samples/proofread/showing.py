"""What a terminal shows: changes in colours, depths in colours, differences, progress."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from proofread import Corrected
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

DEPTHS = ("green", "yellow", "dark_orange", "red")  # after loop 1, 2, 3, and beyond
SUPERSCRIPTS = str.maketrans("0123456789", "\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")
CHANGES = {"removed": "red strike", "inserted": "bold green"}
MARKS = {"removed": ("[-", "-]"), "inserted": ("{+", "+}")}  # where there are no colours, as wdiff has them
Styled = tuple[str, str]  # a text and how rich shows it


def count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


@contextmanager
def progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def text(corrected: Corrected, by_depth: bool, loops: int) -> None:
    """The corrected text; on a terminal with what changed, or with the depths of its tokens."""
    console = _console()
    if by_depth:
        _print(console, depths(corrected, _has_colours(console), loops))
    elif console.is_terminal:
        _print(console, changes(corrected, _has_colours(console)))
        corrections = count(len(corrected.edits), "correction")
        depth = f", mean depth {corrected.depth:.2f} of {loops}" if corrected.tokens and loops > 1 else ""
        sys.stderr.write(f"{corrections}{depth}\n")
    else:
        _write(corrected.text)


def changes(corrected: Corrected, coloured: bool) -> Iterator[Styled]:
    """What was removed and what was put in, in colours or between marks."""
    for segment in corrected.segments():
        if coloured:
            yield segment.text, CHANGES.get(segment.kind, "")
        else:
            before, behind = MARKS.get(segment.kind, ("", ""))
            yield f"{before}{segment.text}{behind}", ""


def depths(corrected: Corrected, coloured: bool, loops: int) -> Iterator[Styled]:
    """Without colours, the depth stands behind each token."""
    for segment in corrected.segments():
        if segment.kind == "removed":
            continue
        if segment.depth is None:
            yield segment.text, ""
        elif coloured:
            yield segment.text, _depth_style(segment.depth)
        else:
            depth = str(segment.depth).translate(SUPERSCRIPTS) if segment.text.strip() else ""
            yield segment.text + depth, ""
    if coloured:
        yield ("" if corrected.text.endswith("\n") else "\n") + "left after loop", ""
        for depth in range(1, loops + 1):
            yield " ", ""
            yield f" {depth} ", f"{_depth_style(depth)} reverse"
        yield "\n", ""


def _depth_style(depth: int) -> str:
    return DEPTHS[min(depth, len(DEPTHS)) - 1]


def diff(name: str, corrected: Corrected) -> None:
    """A unified diff; `patch` and `git apply` take it."""
    before, after = (re.findall(r"[^\n]*\n|[^\n]+", version) for version in (corrected.original, corrected.text))
    lines = [
        line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
        for line in difflib.unified_diff(before, after, name, name)
    ]
    console, styles = _console(), {"+": "green", "-": "red", "@": "cyan"}
    _print(console, ((line, styles.get(line[0], "") if _has_colours(console) else "") for line in lines))


def _console() -> Console:
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True)


def _has_colours(console: Console) -> bool:
    return console.is_terminal and console.color_system is not None and not console.no_color


def _print(console: Console, parts: Iterable[Styled]) -> None:
    """To a terminal; anything else gets the text to the byte."""
    if console.is_terminal:
        shown = Text.assemble(*parts)
        console.print(shown, end="" if shown.plain.endswith("\n") else "\n")
    else:
        _write("".join(text for text, _ in parts))


def _write(text: str) -> None:
    """To the byte: no line end is translated."""
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode("utf-8"))
    sys.stdout.buffer.flush()
