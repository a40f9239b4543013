"""What the chat shows: Markdown as it streams, the footer; and Ctrl-C."""

from __future__ import annotations

import io
import signal

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from rrt_edge.cli.chat import view as chat_view
from rrt_edge.cli.chat.view import Markdown, MarkdownView, finished, footer, visible
from rrt_edge.runtime import Stats, Token
from tests.screens import scrollback


def console(file: io.StringIO, columns: int, rows: int) -> Console:
    return Console(file=file, force_terminal=True, width=columns, height=rows, color_system=None, _environ={})


def shown(content: str, columns: int, rows: int) -> list[str]:
    """All lines of a terminal that was sent this, those that scrolled off included."""
    screen = pyte.HistoryScreen(columns, rows, history=100_000)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(content)
    return scrollback(screen)


LINES = st.sampled_from(
    [
        "word", "some more words", "**bold**", "*em*", "`code`", "__x__", "<b>hi</b>", "[l](http://x.y)", "![i](u)",
        "#tag", "# Title", "## Sub", "日本", "- a", "+", "1. b", "10. x", "  - nested", "   1. n", "> q", ">", "```",
        "```python", "~~~", "    indented", "---", "***", "===", "| a | b |", "|-|-|", "| 1 | 2 |", "", "", "", "\t",
        "[r]: http://z", "[r]", "~~s~~", "**", "_", "\\", "<div>", "é" * 30, "text " * 30,
    ]
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(LINES, max_size=30).map("\n".join), st.data(), st.integers(4, 20), st.integers(12, 60))
def test_streamed_markdown_ends_as_if_printed_at_once(text: str, data: st.DataObject, rows: int, columns: int) -> None:
    """However it is cut into tokens, and however small the screen: nothing is lost, doubled or drawn over."""
    streamed, at_once = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat_view, "FRAME", 0)  # draw at every token
        patch.setattr(chat_view, "DRAWING", 0)
        with MarkdownView(console(streamed, columns, rows)) as view:
            rest = text
            while rest:
                size = data.draw(st.integers(1, 12))
                view.add(Token(rest[:size], 0, 1, 0.0))
                rest = rest[size:]
    with MarkdownView(console(at_once, columns, rows)) as view:
        view._text = visible(text)
    assert shown(streamed.getvalue(), columns, rows) == shown(at_once.getvalue(), columns, rows)


def test_markdown_shows_all_that_was_said() -> None:
    file = io.StringIO()
    text = "# Title\n\n42.\n\n<b>bold</b> [name](http://a.b)\nnext ![image](x.png)\n\n[a]: http://c.d\n\n- one\n- two\n"
    console(file, 60, 20).print(Markdown(text))
    lines = [line.strip() for line in file.getvalue().splitlines() if line.strip()]
    assert lines[:2] == ["Title", "42."]
    assert lines[2] == "<b>bold</b> name (http://a.b)"  # and the line ends where it did
    assert "image" in lines[3] and "x.png" in lines[3] and lines[4:] == ["[a]: http://c.d", "• one", "• two"]


def test_only_finished_blocks_are_printed_for_good() -> None:
    assert finished("One\n\nTwo") == ("", "One\n\nTwo")  # "Two" may become a heading of the line above, or a rule
    assert finished("One\n\nTwo\n") == ("One\n\n", "Two\n")
    assert finished("One\n#") == ("", "One\n#")  # "#tag" would go on with the paragraph
    assert finished("```\n# a\n\nb\n") == ("", "```\n# a\n\nb\n")
    assert finished("- a\n\n- b\n") == ("", "- a\n\n- b\n")


def test_a_reply_cannot_command_the_terminal() -> None:
    assert visible("a\x1b]52;c;eA==\x07\x9b2J\r\nb\tc\x7f") == "a␛]52;c;eA==␇\N{REPLACEMENT CHARACTER}2J\nb\tc␡"


def test_the_footer_says_what_was_saved_or_added() -> None:
    def stats(rows: float, drafted: int = 0, device: str = "cpu") -> Stats:
        return Stats(20, 13, 100.0, 42.4, 0.1, 0.1, 1.25, rows, 1.5, drafted, 0, 1 << 20, device)

    saved = "42 tokens/s · mean depth 1.25 of 2 · block work saved 30% · context 33/512"
    assert footer(stats(1.4), 2, 512) == saved
    assert footer(stats(1.4, device="webgpu"), 2, 512) == f"{saved} · on webgpu"
    assert "block work added 50% (the prompt caught up)" in footer(stats(3.0), 2, 512)
    assert footer(stats(3.0, drafted=9), 2, 512).endswith("1.50 steps a token · context 33/512")
    assert footer(stats(1.0), 1, 512) == "42 tokens/s · context 33/512"


def test_ctrl_c_stops_behind_a_token_and_at_once_the_second_time() -> None:
    from rrt_edge.cli.chat.keys import stoppable

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGINT)  # no token yet
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        assert not stop.asked()
        signal.raise_signal(signal.SIGINT)
        assert stop.asked()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
