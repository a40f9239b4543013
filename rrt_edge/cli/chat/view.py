"""How a reply appears while it streams: bare text, text shaded by depth, or Markdown; and the line below it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import rich.markdown
from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.control import Control
from rich.rule import Rule
from rich.segment import ControlType, Segment, SegmentLines
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from rrt_edge.cli.terminal import Thoughts

if TYPE_CHECKING:
    from types import TracebackType

    from rich.markdown import MarkdownElement

    from rrt_edge.runtime import Stats, Token

FRAME = 1 / 15  # seconds between two drawings of what may still change
DRAWING = 9  # or this many times what one takes, so that a long block does not hold up the model
# What a terminal would take for commands shows as a symbol; a line is ended by its line feed alone.
_CONTROLS: dict[int, str | None] = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in "\t\n"}
_CONTROLS |= {ord("\r"): None, 0x7F: "\u2421"} | dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}")
# HTML, images and link definitions stay the text that they are: nothing of a reply may vanish.
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"]).disable(["image", "reference"])


def visible(text: str) -> str:
    """The text with its control characters made harmless."""
    return text.translate(_CONTROLS)


class View(Protocol):
    """Shows the tokens of one reply; a context manager that leaves the cursor on a line of its own."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def add(self, token: Token) -> None: ...


class TokenView:
    """Writes each token as it comes; what was written is not touched again."""

    def __init__(self, console: Console, shown: Callable[[Token], Text], write: Callable[[Token], None]) -> None:
        self._console, self._write = console, write
        self._thoughts = Thoughts(console, shown)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._console.file.write("\n")
        self._console.file.flush()

    def add(self, token: Token) -> None:
        self._thoughts.add(token)
        self._write(token)


def bare(console: Console) -> TokenView:
    """The text as the model wrote it, for programs."""

    def write(token: Token) -> None:
        console.file.write(token.text)
        console.file.flush()

    return TokenView(console, lambda token: Text(token.text), write)


def styled(console: Console, shown: Callable[[Token], Text]) -> TokenView:
    """Tokens as `shown` makes them look, for people; lines are broken by the terminal."""
    return TokenView(console, shown, lambda token: console.print(shown(token), end="", soft_wrap=True))


class MarkdownView:
    """Renders Markdown as it comes.

    Blocks that are finished (a paragraph, a list, a piece of code) are printed for good. Only the last one, which may
    still change, is drawn over and over, and never more of it than fits the screen: what has scrolled off is never
    drawn over, and ends up there whole and once. A thought before the answer is no Markdown: its lines come dimmed.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""  # what is not printed for good
        self._thinking = False  # which of the two it is
        self._printed = False
        self._rows = 0  # of the last drawing
        self._next = 0.0  # when it may be drawn again

    def __enter__(self) -> Self:
        self._console.show_cursor(False)
        self._console.print("…", style="dim")  # a long prompt may take its time
        self._rows = 1
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._draw(self._text, "")
        finally:
            self._console.show_cursor(True)

    def add(self, token: Token) -> None:
        if token.text and self._thinking:
            self._draw(self._text, "")
            self._thinking = False
        self._thinking = self._thinking or bool(token.thought)
        self._text += visible((token.thought or "") if self._thinking else token.text)
        started = time.perf_counter()
        if started >= self._next:
            self._draw(*(_whole_lines(self._text) if self._thinking else finished(self._text)))
            ended = time.perf_counter()
            self._next = ended + max(FRAME, DRAWING * (ended - started))

    def _draw(self, done: str, rest: str) -> None:
        console, lines = self._console, self._lines(done)
        self._printed = self._printed or bool(lines)
        tail = self._lines(rest)[-max(console.height - 2, 1) :]
        up = ((ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2))
        with console:  # one write, so that nothing flickers
            console.control(Control(ControlType.CARRIAGE_RETURN, *(up * self._rows)))
            console.print(SegmentLines([*lines, *tail], new_lines=True), end="")
        self._text, self._rows = rest, len(tail)

    def _lines(self, text: str) -> list[list[Segment]]:
        """Rendered Markdown, below a blank line where something stands above; or lines of a thought."""
        console = self._console
        # One column less: a character wider than it claims to be must not break the line.
        options = console.options.update(width=max(console.width - 1, 1))
        if self._thinking:
            return console.render_lines(Text(text.removesuffix("\n"), "dim"), options, pad=False) if text else []
        markdown = Markdown(text)
        if not markdown.parsed:
            return []
        lines = console.render_lines(markdown, options, pad=False)
        if lines and markdown.begins_nested and not any(segment.text.strip() for segment in lines[0]):
            del lines[0]  # rich has put it there
        return [[], *lines] if self._printed else lines


def _whole_lines(text: str) -> tuple[str, str]:
    """Text in two: the lines that are whole, and the rest."""
    at = text.rfind("\n") + 1
    return text[:at], text[at:]


def finished(text: str) -> tuple[str, str]:
    """Markdown in two: the blocks that no further text can change, and the rest."""
    whole = text[: text.rfind("\n") + 1]  # an unfinished line may become anything
    starts = [token.map[0] for token in _PARSER.parse(whole) if token.level == 0 and token.map and token.nesting >= 0]
    if len(starts) < 2:
        return "", text
    at = sum(map(len, whole.split("\n")[: starts[-1]])) + starts[-1]
    return text[:at], text[at:]


class _Heading(rich.markdown.Heading):
    LEVEL_ALIGN: ClassVar[Any] = {}  # all to the left


class _Code(rich.markdown.CodeBlock):
    """A code block in the terminal's own colours, on its own background."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        code = str(self.text).rstrip()
        yield Syntax(code, self.lexer_name, theme="ansi_dark", word_wrap=True, padding=(0, 2))


class _Item(rich.markdown.ListItem):
    """Numbers with their point; an empty item shows its mark, since a reply like "42." is one."""

    def render_bullet(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _marked(console, options, self.elements, " • ", "markdown.item.bullet")

    def render_number(self, console: Console, options: ConsoleOptions, number: int, last_number: int) -> RenderResult:
        mark = f"{number}. ".rjust(len(str(last_number - 1)) + 3)
        yield from _marked(console, options, self.elements, mark, "markdown.item.number")


class _Quote(rich.markdown.BlockQuote):
    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from _marked(console, options, self.elements, "▌ ", "markdown.block_quote", every=True)


def _marked(
    console: Console, options: ConsoleOptions, content: RenderableType, mark: str, style: str, every: bool = False
) -> RenderResult:
    """Content behind a mark, on its first line or on every one."""
    inner = options.update(width=max(options.max_width - len(mark), 1))
    for index, line in enumerate(console.render_lines(content, inner, pad=False) or [[]]):
        yield Segment(mark if every or index == 0 else " " * len(mark), console.get_style(style))
        yield from line
        yield Segment.line()


class _Rule(rich.markdown.HorizontalRule):
    new_line = True

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(style="markdown.hr", characters="-")


class _Table(rich.markdown.TableElement):
    """Without the blank lines that rich puts above and below it."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for table in super().__rich_console__(console, options):
            if isinstance(table, Table):
                table.show_edge = False
            yield table


class Markdown(rich.markdown.Markdown):
    """Markdown that shows all of the text: lines end where they did, links with their address."""

    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **rich.markdown.Markdown.elements,
        "heading_open": _Heading,
        "fence": _Code,
        "code_block": _Code,
        "hr": _Rule,
        "list_item_open": _Item,
        "blockquote_open": _Quote,
        "table_open": _Table,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                if child.type == "softbreak":
                    child.type = "hardbreak"

    @property
    def begins_nested(self) -> bool:
        """Whether the first block holds other blocks."""
        return self.parsed[0].type in ("bullet_list_open", "ordered_list_open", "blockquote_open", "table_open")


def footer(stats: Stats, loops: int, context: int) -> str:
    """Return the cost of a reply in a line; `context`: the tokens that the conversation may hold."""
    speed, used = stats.decode_tokens_per_second, stats.prompt_tokens + stats.generated_tokens
    parts = [f"{speed:.0f} tokens/s" if speed >= 10 else f"{speed:.1f} tokens/s"] if speed else []
    if loops > 1:
        saved = 1 - stats.block_rows_per_token / loops
        parts.append(f"mean depth {stats.mean_depth:.2f} of {loops}")
        if stats.drafted:
            parts.append(f"{stats.steps_per_token:.2f} steps a token")
        elif saved > -0.005:
            parts.append(f"block work saved {saved:.0%}")
        else:
            parts.append(f"block work added {-saved:.0%} (the prompt caught up)")
    device = [] if stats.device == "cpu" else [f"on {stats.device}"]
    return " · ".join([*parts, f"context {used}/{context}", *device])
