"""Thoughts on the command line: dimmed in a terminal, left out of a pipe, told in JSON."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyte
import pytest
from rich.console import Console

pytest.importorskip("torch", reason="needs torch: pip install -e '.[dev]'")

from rrt_edge.cli.chat import view as chat_view
from rrt_edge.cli.chat.file import load_chat, save_chat
from rrt_edge.cli.chat.view import MarkdownView
from rrt_edge.runtime import BadInputError, Model, Token
from tests.program import run
from tests.screens import scrollback
from tests.thinker import ANSWER, THOUGHT

CHAT = [{"role": "user", "content": "The cat"}]
DIM = "\x1b[2m"


def test_a_pipe_gets_the_answer_alone(thinker: Path, tmp_path: Path) -> None:
    done = run("generate", thinker, "The cat")
    assert done.stdout == f"{ANSWER}\n" and THOUGHT not in done.stderr
    done = run("run", thinker, "The cat", "--think-tokens", 0)
    assert done.stdout == f"{ANSWER}\n"
    done = run("generate", thinker, "The cat", "--max-tokens", 4)
    assert done.stdout == "\n" and done.stderr.startswith("the reply ended inside its thought; raise --max-tokens")
    saved = tmp_path / "chat.json"
    done = run("chat", thinker, given=f"The cat\nThe dog\n/save {saved}\n")
    assert (done.stdout, done.stderr) == (f"{ANSWER}\n{ANSWER}\n", "")
    answered = {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    assert load_chat(saved)[1] == load_chat(saved)[3] == answered


def test_json_has_both(thinker: Path) -> None:
    told = json.loads(run("generate", thinker, "The cat", "--json", "--think-tokens", 3).stdout)
    assert (told["thought"], told["text"]) == ("Hm, a", ANSWER)
    assert "".join(token.get("thought", "") for token in told["tokens"]) == "Hm, a"


def shown(thinker: Path, view, terminal: bool = True) -> str:
    """What a view writes of a reply."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=60, color_system="standard", _environ={})
    with Model.load(thinker) as model, view(console) as opened:
        for token in model.chat(CHAT):
            opened.add(token)
    return file.getvalue()


def test_a_terminal_shows_the_thought_dimmed_and_apart(thinker: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_view, "FRAME", 0)
    monkeypatch.setattr(chat_view, "DRAWING", 0)
    for text in (shown(thinker, MarkdownView), shown(thinker, chat_view.bare)):
        assert DIM in text
    plain = shown(thinker, chat_view.bare)
    assert plain.replace(DIM, "").replace("\x1b[0m", "") == f"{THOUGHT}\n\n{ANSWER}\n"
    assert shown(thinker, chat_view.bare, terminal=False) == f"{ANSWER}\n"


def test_a_long_thought_scrolls_off_whole_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a screen of five rows, drawn at every token."""
    monkeypatch.setattr(chat_view, "FRAME", 0)
    monkeypatch.setattr(chat_view, "DRAWING", 0)
    thought, answer = [f"{number} *is* a number" for number in range(9)], ["One", "", "Two"]
    file, size = io.StringIO(), 7
    text = "\n".join(thought)
    with MarkdownView(Console(file=file, force_terminal=True, width=40, height=5, _environ={})) as view:
        for at in range(0, len(text), size):
            view.add(Token("", 0, 1, 0.0, thought=text[at : at + size]))
        view.add(Token("", 0, 1, 0.0))
        for piece in ("On", "e\n\n", "Two"):
            view.add(Token(piece, 0, 1, 0.0))
    screen = pyte.HistoryScreen(40, 5, history=1000)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(file.getvalue())
    assert scrollback(screen) == [*thought, "", *answer]


def test_saved_thoughts_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save_chat(path, [{"role": "assistant", "content": "a", "reasoning_content": 3}])  # type: ignore[dict-item]
    with pytest.raises(BadInputError, match="message 1: reasoning_content must be a text"):
        load_chat(path)
