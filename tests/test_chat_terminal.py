"""The terminal chat: through a pipe, in a real pseudo-terminal, and its parts."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

import rrt_edge
from rrt_edge.chat import view as chat_view
from rrt_edge.chat.file import load_chat, save_chat
from rrt_edge.chat.view import Markdown, MarkdownView, finished, footer, visible
from rrt_edge.exporters import export
from rrt_edge.runtime import BadInputError, Model, Sampling, Stats, Token

MAIN = "from rrt_edge.cli import main; main()"
POLICY = "threshold=0.5"
needs_terminal = pytest.mark.skipif(sys.platform == "win32", reason="pexpect's pseudo-terminals need POSIX")


def chat(bundle: Path, given: str | bytes, *options: object, main: str = MAIN) -> subprocess.CompletedProcess[str]:
    """Run the chat with a pipe for input."""
    command = [sys.executable, "-P", "-c", main, "chat", str(bundle), "--exit-policy", POLICY, *map(str, options)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8", "COLUMNS": "100"}
    content = given.encode() if isinstance(given, str) else given
    done = subprocess.run(command, input=content, capture_output=True, env=environment)
    out, error = (stream.decode().replace("\r\n", "\n") for stream in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(command, done.returncode, out, error)


def conversation(bundle: Path, questions: list[str], **sampling: Any) -> list[str]:
    """What the model answers to some messages of one conversation, each time without anything kept."""
    messages: list[dict[str, str]] = []
    with Model.load(bundle) as model:
        for question in questions:
            messages.append({"role": "user", "content": question})
            reply = "".join(token.text for token in model.chat(messages, Sampling(**sampling), POLICY))
            messages.append({"role": "assistant", "content": reply})
    return [message["content"] for message in messages[1::2]]


# Through a pipe


def test_a_pipe_gets_the_replies_and_nothing_else(bundle: Path) -> None:
    replies = conversation(bundle, ["The cat", "The dog", "The fox"], max_tokens=6)
    done = chat(bundle, "The cat\n\nThe dog\n  The fox  ", "--max-tokens", 6)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "".join(f"{reply}\n" for reply in replies)


def test_undo_and_retry_change_what_the_model_sees(bundle: Path) -> None:
    first, second = conversation(bundle, ["The cat", "The fox"], max_tokens=6)
    done = chat(bundle, "The cat\nThe dog\n/undo\n/retry\nThe fox\n/reset\nThe cat\n", "--max-tokens", 6)
    said = conversation(bundle, ["The cat", "The dog"], max_tokens=6)
    assert done.stdout == "".join(f"{reply}\n" for reply in (*said, first, second, first))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_retry_samples_with_another_seed(bundle: Path) -> None:
    options = ("--max-tokens", 12, "--temperature", 1.0, "--seed", 7)
    lines = [chat(bundle, "The cat\n/retry\n/retry\n/undo\nThe cat\n", *options).stdout for _ in range(2)]
    seeds = [conversation(bundle, ["The cat"], max_tokens=12, temperature=1.0, seed=seed)[0] for seed in (7, 8, 9)]
    assert len(set(seeds)) == 3
    assert lines == ["".join(f"{reply}\n" for reply in (*seeds, seeds[0]))] * 2


def test_commands_answer_in_a_pipe(bundle: Path) -> None:
    done = chat(bundle, "The cat\n/depth 1\n/stats\n/full\n/policy lossless\n/stats\n/help\n/exit\nnever read\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "depth=1" in done.stdout and "lossless" in done.stdout and "block rows per token" in done.stdout
    assert "/threshold [T]" in done.stdout and "never read" not in done.stdout
    assert not any(notice in done.stdout for notice in ("exit policy full", "Ctrl-D", "\x1b"))


@pytest.mark.parametrize(
    "line, message",
    [
        ("/unod", "/unod is not a command; did you mean /undo?"),
        ("/xyzzy 1", "/xyzzy is not a command; /help lists them"),
        ("/depth 9", "exit policy 'depth=9': the depth must be from 1 to 3"),
        ("/depth", "/depth: write /depth N"),
        ("/threshold 2", "the threshold must be from 0 to 1"),
        ("/threshold", "this bundle has no calibrated threshold"),
        ("/policy often", "exit policy 'often': must be full"),
        ("/full now", "/full: write /full"),
        ("/depth-view maybe", "write /depth-view on or /depth-view off"),
        ("/undo", "there is no message yet"),
        ("/retry", "there is no message yet"),
        ("/stats", "generated in this session yet"),
        ("/copy", "there is no reply yet"),
        ("/load {folder}/none", "{folder}/none: cannot be read (No such file or directory)"),
        ("/save {folder}/none/chat", "{folder}/none/chat: cannot be written (No such file or directory)"),
    ],
)
def test_a_wrong_command_is_one_line_on_standard_error(bundle: Path, tmp_path: Path, line: str, message: str) -> None:
    done = chat(bundle, line.format(folder=tmp_path) + "\nThe cat\n", "--max-tokens", 3)
    assert done.returncode == 2 and done.stdout.count("\n") == 1, done.stdout
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert message.format(folder=tmp_path) in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_full_context_says_what_to_do_and_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    given = f"The cat\n{'hen ' * 40}\n/save {saved}\nThe dog\n"
    done = chat(bundle, given, "--max-tokens", 3, "--context", 40)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "the context holds 40" in done.stderr and "/undo" in done.stderr and "/reset" in done.stderr
    replies = conversation(bundle, ["The cat", "The dog"], max_tokens=3)
    assert done.stdout == "".join(f"{reply}\n" for reply in replies)
    assert [message["content"] for message in load_chat(saved)] == ["The cat", replies[0]]
    alone = chat(bundle, "hen " * 400, "--context", 40)
    assert "shorten it" in alone.stderr and "/undo" not in alone.stderr


def test_a_conversation_goes_on_from_a_file(bundle: Path, tmp_path: Path) -> None:
    replies = conversation(bundle, ["The cat", "The dog"], max_tokens=6)
    saved = tmp_path / "a chat.json"
    assert chat(bundle, f"The cat\n/save {saved}\n", "--max-tokens", 6).returncode == 0
    assert json.loads(saved.read_text("utf-8")) == {
        "format": "rrt-edge chat",
        "version": 1,
        "messages": [{"role": "user", "content": "The cat"}, {"role": "assistant", "content": replies[0]}],
    }
    done = chat(bundle, f"Hello\n/load {saved}\nThe dog\n", "--max-tokens", 6)
    assert done.stdout.endswith(f"\n{replies[1]}\n") and done.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["a chat.json"]


def test_a_system_message_leads_the_conversation(bundle: Path, tmp_path: Path) -> None:
    saved = tmp_path / "chat.json"
    chat(bundle, f"The cat\n/system Be brief\n/save {saved}\n", "--max-tokens", 3, "--system", "Be kind")
    roles = [(message["role"], message["content"]) for message in load_chat(saved)]
    assert roles[0] == ("system", "Be brief") and [role for role, _ in roles] == ["system", "user", "assistant"]


def test_a_template_may_refuse_a_message(bundle: Path, tmp_path: Path) -> None:
    picky = Path(shutil.copytree(bundle, tmp_path / "picky"))
    refusing = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    replace_template(picky, refusing + "{{ m.content }}{% endfor %}")
    done = chat(picky, "/system Be brief\nThe cat\n", "--max-tokens", 3)
    assert done.returncode == 2 and "no system" in done.stderr and done.stdout.count("\n") == 1


def replace_template(bundle: Path, template: str | None) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "chat_template.jinja").unlink()
    del manifest["files"]["chat_template.jinja"]
    config = json.loads((bundle / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    content = json.dumps({**config, **({"chat_template": template} if template else {})}).encode()
    (bundle / "tokenizer_config.json").write_bytes(content)
    import hashlib

    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    manifest["files"]["tokenizer_config.json"] = entry
    (bundle / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_without_a_template_is_one_line(bundle: Path, tmp_path: Path) -> None:
    silent = Path(shutil.copytree(bundle, tmp_path / "silent"))
    replace_template(silent, None)
    done = chat(silent, "The cat\n")
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert "has no chat template" in done.stderr and "--raw" in done.stderr


def test_depths_stand_behind_tokens_in_a_pipe(bundle: Path) -> None:
    done = chat(
        bundle, "The cat\n/depth-view off\nThe cat\n", "--max-tokens", 6, "--show-depth", "--exit-policy", "depth=2"
    )
    shaded, bare = done.stdout.splitlines()
    assert "²" in shaded and "²" not in bare


def test_bytes_that_are_no_text_are_refused(bundle: Path) -> None:
    done = chat(bundle, b"caf\xe9\n", "--max-tokens", 3)
    assert done.returncode == 2 and "not valid UTF-8" in done.stderr and "Traceback" not in done.stderr


def test_a_pipe_does_not_need_the_line_editor(bundle: Path) -> None:
    done = chat(
        bundle, "The cat\n", "--max-tokens", 3, main=f"import sys; sys.modules['prompt_toolkit'] = None; {MAIN}"
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr


# Files


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "not valid JSON"),
        ("[1]", '"format" is not "rrt-edge chat"'),
        ('{"format": "rrt-edge chat", "version": 2, "messages": []}', "version 2"),
        ('{"format": "rrt-edge chat", "version": 1, "messages": {}}', '"messages" must be a list'),
        ('{"format": "rrt-edge chat", "version": 1, "messages": [{"role": "user"}]}', "message 1 must be an object"),
        (
            '{"format": "rrt-edge chat", "version": 1, "messages": [{"role": "dog", "content": ""}]}',
            "message 1: role 'dog' must be one of system, user, assistant",
        ),
    ],
)
def test_a_file_that_is_no_chat_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(BadInputError) as caught:
        load_chat(path)
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    with pytest.raises(BadInputError, match="exists and is not a saved chat"):
        save_chat(path, [])
    assert path.read_text() == content


def test_a_saved_chat_may_be_replaced(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "日本\n\x07"}]
    save_chat(tmp_path / "chat", [])
    save_chat(tmp_path / "chat", messages)
    assert load_chat(tmp_path / "chat") == messages
    assert [path.name for path in tmp_path.iterdir()] == ["chat"]


# What is shown


def console(file: io.StringIO, columns: int, rows: int) -> Console:
    return Console(file=file, force_terminal=True, width=columns, height=rows, color_system=None, _environ={})


def shown(content: str, columns: int, rows: int) -> list[str]:
    """All lines of a terminal that was sent this, those that scrolled off included."""
    screen = pyte.HistoryScreen(columns, rows, history=100_000)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(content)
    return scrollback(screen)


def scrollback(screen: pyte.HistoryScreen) -> list[str]:
    past = ["".join(line[column].data for column in range(screen.columns)) for line in screen.history.top]
    return "\n".join(line.rstrip() for line in [*past, *screen.display]).rstrip().split("\n")


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
    def stats(rows: float, drafted: int = 0) -> Stats:
        return Stats(20, 13, 100.0, 42.4, 0.1, 0.1, 1.25, rows, drafted, 0, 1 << 20)

    saved = "42 tokens/s · mean depth 1.25 of 2 · block work saved 30% · context 33/512"
    assert footer(stats(1.4), 2, 512) == saved
    assert "block work added 50% (the prompt caught up)" in footer(stats(3.0), 2, 512)
    assert footer(stats(3.0, drafted=9), 2, 512).endswith("block work added 50% · context 33/512")
    assert footer(stats(1.0), 1, 512) == "42 tokens/s · context 33/512"


# Ctrl-C


def test_ctrl_c_stops_behind_a_token_and_at_once_the_second_time() -> None:
    from rrt_edge.chat.keys import stoppable

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), stoppable():
        signal.raise_signal(signal.SIGINT)  # no token yet
    with pytest.raises(KeyboardInterrupt), stoppable() as stop:
        assert not stop.asked()
        signal.raise_signal(signal.SIGINT)
        assert stop.asked()
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


# In a terminal


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
    assert lines[-4] == "stopped" and "tokens/s · mean depth 1.00 of 3 · block work saved 67%" in lines[-3]

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
