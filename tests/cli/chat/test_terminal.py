"""The chat in a real pseudo-terminal."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyte
import pytest

import rrt_edge
from rrt_edge.cli.chat.file import load_chat, save_chat
from rrt_edge.cli.chat.view import visible
from rrt_edge.exporters import export
from rrt_edge.runtime import Model, Sampling
from tests.screens import scrollback

MAIN = "from rrt_edge.cli import main; main()"
POLICY = "threshold=0.5"
needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="pexpect's pseudo-terminals need POSIX")


class Terminal:
    """A program in a pseudo-terminal of 80 columns, and the screen that it draws."""

    def __init__(self, command: list[str], folder: Path, rows: int) -> None:
        import pexpect

        environment = {
            **os.environ,
            "TERM": "xterm-256color",
            "RRT_EDGE_HOME": str(folder / "home"),
            "LC_ALL": "C.UTF-8",
        }
        environment.pop("NO_COLOR", None)
        self.child = pexpect.spawn(
            command[0], command[1:], dimensions=(rows, 80), encoding="utf-8", env=environment, cwd=folder, timeout=None
        )
        child = self.child

        class Answering(pyte.HistoryScreen):
            """Tells the program where the cursor stands, as terminals do."""

            def write_process_input(self, data: str) -> None:
                child.send(data)

        self.screen = Answering(80, rows, history=100_000)
        self.sent = ""
        self._stream = pyte.Stream(self.screen)

    @property
    def lines(self) -> list[str]:
        return scrollback(self.screen)

    def type(self, keys: str) -> None:
        self.child.send(keys)

    def until(self, seen: Callable[[list[str]], bool]) -> list[str]:
        """Read until the lines are as wanted."""
        while not seen(self.lines):
            self._read()
        return self.lines

    def prompt(self, count: int) -> list[str]:
        """Read until so many prompts stand there, the last one empty."""
        return self.until(lambda lines: lines[-1] == ">" and sum(line.startswith(">") for line in lines) == count)

    def end(self) -> int:
        """Read until the program ends; returns its exit status."""
        import pexpect

        try:
            while True:
                self._read()
        except pexpect.EOF:
            self.child.close()
        return int(self.child.exitstatus)

    def _read(self) -> None:
        data = self.child.read_nonblocking(1 << 16, timeout=None)
        self.sent += data
        self._stream.feed(data)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    """Start the chat in a terminal."""
    started: list[Terminal] = []

    def begin(bundle: Path, *options: object, rows: int = 40) -> Terminal:
        command = [sys.executable, "-P", "-c", MAIN, "chat", str(bundle), *map(str, options)]
        started.append(Terminal(command, tmp_path, rows))
        started[-1].prompt(1)
        return started[-1]

    yield begin
    for terminal in started:
        terminal.child.close(force=True)


@pytest.fixture(scope="module")
def endless(make_source: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with so much context that a reply does not come to its end."""
    folder = tmp_path_factory.mktemp("endless")
    rrt_edge.convert(make_source(max_position_embeddings=1 << 17), folder / "recursive", loops=3, rank=4)
    export(folder / "recursive", folder / "bundle", bits=32)
    return folder / "bundle"


@needs_terminal
@pytest.mark.parametrize("view", [(), ("--plain",), ("--show-depth",)])
def test_a_whole_conversation(
    endless: Path, start: Callable[..., Terminal], tmp_path: Path, view: tuple[str, ...]
) -> None:
    terminal = start(endless, "--context", 100_000, "--max-tokens", 100_000, "--exit-policy", "depth=1", *view, rows=20)
    terminal.type("The cat\x1b\rsees\nthe hen")
    terminal.until(lambda lines: lines[-3:] == ["> The cat", "  sees", "  the hen"])
    terminal.type("\r")
    drawn = len(terminal.lines)
    terminal.until(lambda lines: len(lines) > drawn + 3)  # it streams
    terminal.type("\x03")
    lines = terminal.prompt(2)
    assert lines[-4] == "stopped" and "tokens/s · mean depth 1.00 of 3 · " in lines[-3]

    terminal.type("/save chat.json\r")
    terminal.until(lambda lines: lines[-2:] == ["2 messages written to chat.json", ">"])
    question, reply = load_chat(tmp_path / "chat.json")
    assert question == {"role": "user", "content": "The cat\nsees\nthe hen"} and reply["role"] == "assistant"
    with Model.load(endless, context=100_000) as model:
        stream = model.chat([question], Sampling(max_tokens=100_000), "depth=1")
        expected = ""
        while len(expected) < len(reply["content"]):
            expected += next(stream).text
    assert reply["content"] == expected and expected

    terminal.type("/undo\r")
    terminal.until(lambda lines: lines[-2:] == ["forgot: The cat sees the hen", ">"])
    terminal.type("/undo\r")
    terminal.until(lambda lines: lines[-2:] == ["error: there is no message yet", ">"])
    terminal.type("/load chat.json\r")
    terminal.until(lambda lines: "2 messages read from chat.json" in lines and lines[-1] == ">")
    prompts = sum(line.startswith(">") for line in terminal.lines)
    terminal.type("/retry\r")
    terminal.until(lambda lines: lines[-1] not in (">", "> /retry"))
    terminal.type("\x03")
    assert terminal.prompt(prompts + 1)[-4] == "stopped"
    terminal.type("\x04")
    assert terminal.end() == 0


@needs_terminal
def test_a_long_prompt_can_be_stopped(endless: Path, start: Callable[..., Terminal], tmp_path: Path) -> None:
    save_chat(tmp_path / "long.json", [{"role": "user", "content": "The cat sees the hen. " * 10_000}])
    terminal = start(endless, "--context", 100_000, "--max-tokens", 4)
    terminal.type("/load long.json\r")
    terminal.until(lambda lines: lines[-2].startswith("user: The cat") and lines[-1] == ">")
    terminal.type("/retry\r")
    terminal.until(lambda lines: lines[-1] == "…")
    terminal.type("\x03")
    terminal.until(lambda lines: lines[-2].startswith("stopped before the reply began") and lines[-1] == ">")
    terminal.type("/reset\r")
    terminal.until(lambda lines: lines[-2:] == ["conversation forgotten", ">"])
    terminal.type("Hello\r")
    terminal.until(lambda lines: "cut off at 4 tokens (--max-tokens)" in lines and lines[-1] == ">")


@needs_terminal
def test_what_is_typed_while_a_reply_streams_waits_for_the_prompt(bundle: Path, start: Callable[..., Terminal]) -> None:
    terminal = start(bundle, "--max-tokens", 200, "--exit-policy", POLICY)
    terminal.type("Hello\r")
    terminal.until(lambda lines: lines[-1] not in (">", "> Hello"))
    terminal.type("The dog\r")
    lines = terminal.until(lambda lines: lines.count("cut off at 200 tokens (--max-tokens)") == 2 and lines[-1] == ">")
    assert [line for line in lines if "dog" in line] == ["> The dog"]


@needs_terminal
def test_keys_at_the_prompt(bundle: Path, start: Callable[..., Terminal], tmp_path: Path) -> None:
    terminal = start(bundle, "--max-tokens", 4)
    terminal.type("never sent\x03")
    terminal.prompt(1)
    terminal.type("\x03")
    terminal.until(lambda lines: lines[-2:] == ["Ctrl-D or /exit leaves", ">"])
    terminal.type("/unod\r")
    terminal.until(lambda lines: lines[-2:] == ["error: /unod is not a command; did you mean /undo?", ">"])
    terminal.type("/")
    terminal.until(lambda lines: any(line.startswith(" /retry") for line in lines))
    terminal.type("depth-")
    terminal.until(lambda lines: lines[-2] == "> /depth-" and lines[-1].split()[0] == "/depth-view")
    terminal.type("\t")
    terminal.until(lambda lines: "> /depth-view" in lines)
    terminal.type(" on\r")
    terminal.until(lambda lines: lines[-2].startswith("depth:  1   2   3") and lines[-1] == ">")
    terminal.type("\x1b[200~The cat\rsees\x1b[201~")  # pasted
    terminal.until(lambda lines: lines[-2:] == ["> The cat", "  sees"])
    terminal.type("\r")
    terminal.until(lambda lines: lines[-1] == ">" and "cut off at 4 tokens (--max-tokens)" in lines)
    terminal.type("/copy\r")
    terminal.until(lambda lines: lines[-2].endswith("sent to the terminal's clipboard") and lines[-1] == ">")
    assert "\x1b]52;c;" in terminal.sent
    terminal.type("\x04")
    assert terminal.end() == 0
    history = tmp_path / "home" / "chat_history"
    assert "+The cat\n+sees\n" in history.read_text() and stat.S_IMODE(history.stat().st_mode) == 0o600
    again = start(bundle, "--max-tokens", 4)
    again.type("\x1b[A\x1b[A\x1b[A")  # up, over the command and the message's second line
    again.until(lambda lines: lines[-2:] == ["> The cat", "  sees"])


@needs_terminal
def test_depths_have_colours(bundle: Path, start: Callable[..., Terminal]) -> None:
    terminal = start(bundle, "--max-tokens", 12, "--show-depth", "--exit-policy", POLICY)
    with Model.load(bundle) as model:
        tokens = list(model.chat([{"role": "user", "content": "Hello"}], Sampling(max_tokens=12), POLICY))
    terminal.type("Hello\r")
    lines = terminal.prompt(2)
    row = lines.index("> Hello") + 1
    cells = [terminal.screen.buffer[row][column] for column in range(80)]
    colours = {1: "green", 2: "brown", 3: "ff8700"}  # pyte's names: brown for yellow
    expected = [colours[token.depth] for token in tokens for _ in visible(token.text)]
    assert len(set(expected)) > 1
    assert [cell.fg for cell in cells[: len(expected)]] == expected
    assert "".join(cell.data for cell in cells).rstrip() == visible("".join(token.text for token in tokens)).rstrip()


@needs_terminal
def test_a_thought_stands_dimmed_above_the_answer(
    thinker: Path, start: Callable[..., Terminal], tmp_path: Path
) -> None:
    from tests.thinker import ANSWER, THOUGHT

    terminal = start(thinker)
    terminal.type("The cat\r")
    lines = [line for line in terminal.prompt(2) if line]
    assert lines[lines.index(THOUGHT) + 1] == ANSWER
    terminal.type("\x04")
    assert terminal.end() == 0 and "\x1b[2m" in terminal.sent
    command = [sys.executable, "-P", "-c", MAIN, "generate", str(thinker), "The cat", "--think-tokens", "3"]
    alone = Terminal(command, tmp_path, 40)
    assert alone.end() == 0 and alone.lines[:3] == ["Hm, a", "", ANSWER] and "\x1b[2mHm," in alone.sent
