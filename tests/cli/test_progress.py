"""Progress of long work: one style in a terminal, lines where there is none, and no bars of other libraries."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from rrt_edge.cli.terminal import progress_bar
from tests.cli.test_library import PROGRAM, Shell
from tests.conftest import PREBUILT, ROOT

PYDOC = ROOT / "samples" / "pydoc"
FOREIGN = ("%|", "it/s", "s/it", "Loading weights", "{'loss'", "'train_runtime'", "[transformers]")
HASTY = f"import rrt_edge.cli.terminal as terminal\nterminal.progress_bar.__wrapped__.__defaults__ = (0.0,)\n{PROGRAM}"


def lines_of(work: Callable[[Callable[[int, int, str], None]], None], every: float) -> list[str]:
    out = io.StringIO()
    with progress_bar(Console(file=out, width=200), True, every) as progress:
        assert progress is not None
        work(progress)
    return out.getvalue().splitlines()


def test_what_is_no_terminal_gets_lines_and_none_of_quick_work() -> None:
    def work(progress: Callable[[int, int, str], None]) -> None:
        progress(3, 10, "texts scored")
        progress(5, 0, "files read")
        progress(20, 100, "steps of gate: loss [0.5]")

    assert lines_of(work, 0.0) == ["3 of 10 texts scored", "5 files read", "20 of 100 steps of gate: loss [0.5]"]
    assert lines_of(work, 3600.0) == []


def test_a_terminal_has_one_bar_for_what_changes_its_detail() -> None:
    out = io.StringIO()
    with progress_bar(Console(file=out, width=100, force_terminal=True), True) as progress:
        assert progress is not None
        for step in range(1, 4):
            progress(step, 3, f"steps of gate: loss {step}")
    up = "\x1b[1A\x1b[2K"  # by a line, for the next picture
    assert "steps of gate: loss 3" in out.getvalue() and up + up not in out.getvalue()
    with progress_bar(Console(file=out), False) as nothing:
        assert nothing is None


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shutil.copytree(PREBUILT, tmp_path / "bundle")
    chat = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A function of os.path."}]
    (tmp_path / "data.jsonl").write_text((json.dumps({"messages": chat}) + "\n") * 8)
    (tmp_path / "text.txt").write_text("The cat sees the hen.\n" * 500)
    return Shell(tmp_path)


def commands(recursive: Path, source: Path, bundle: Path) -> dict[str, tuple[object, ...]]:
    """Every command that may work for long, and what it counts."""
    train = ("train", recursive, "trained", "--data", "data.jsonl", "--eval-data", "data.jsonl", "--teacher", source)
    return {
        "layers": ("convert", source, "converted"),
        "layers exported": ("export", recursive, "exported"),
        "files hashed": ("verify", bundle),
        "texts compared": ("verify", bundle, "--source", recursive, "--text", "text.txt"),
        "tokens sampled": ("verify", bundle, "--source", recursive),
        "texts scored": ("eval", bundle, "--data", "data.jsonl"),
        "texts scored by torch": ("eval", recursive, "--data", "data.jsonl"),
        "texts scored by calibrate": ("calibrate", "bundle", "--data", "data.jsonl"),
        "steps of uptrain: loss": (*train, "--max-steps", "21", "--batch", "2", "--warmup", "1"),
        "measured": ("bench", "bundle", "--prompt", "6", "--new", "4", "--repeats", "1"),
    }


NAMES = [*commands(PYDOC, PYDOC, PYDOC)]


@pytest.mark.slow
@pytest.mark.parametrize("what", NAMES)
def test_long_commands_tell_a_pipe_how_far_they_are(
    what: str, shell: Shell, recursive: Path, source: Path, bundle: Path
) -> None:
    line = [*map(str, commands(recursive, source, bundle)[what])]
    done = subprocess.run(
        [sys.executable, "-P", "-c", HASTY, *line], env=shell.environment, cwd=shell.folder,
        stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counted = what.partition(" by ")[0]
    assert any(f" {counted}" in row and row[:1].isdigit() for row in done.stderr.splitlines()), done.stderr
    assert not [word for word in FOREIGN if word in done.stdout + done.stderr], done.stdout + done.stderr
    if line[0] == "train":
        for stage in ("uptrain", "early-exit", "gate"):
            assert f"21 of 21 steps of {stage}: loss " in done.stderr
            assert f"{stage}, step 21: depth 1 has perplexity " in done.stdout
        picture = (shell.folder / "trained" / "training.png").read_bytes()
        width, height = (int.from_bytes(picture[at : at + 4]) for at in (16, 20))  # of a PNG
        assert round(width / height / (5 / 3.5)) == 5  # the losses of three stages, perplexity, agreement


@pytest.mark.slow
@pytest.mark.parametrize("what", NAMES)
def test_a_terminal_sees_no_bars_of_others(
    what: str, shell: Shell, recursive: Path, source: Path, bundle: Path
) -> None:
    pexpect = pytest.importorskip("pexpect")
    if not hasattr(pexpect, "spawn"):
        pytest.skip("there are no pseudo-terminals here")
    line = [*map(str, commands(recursive, source, bundle)[what])]
    terminal = pexpect.spawn(
        sys.executable, ["-P", "-c", PROGRAM, *line], env=shell.environment, cwd=str(shell.folder), encoding="utf-8",
        timeout=None,
    )  # fmt: skip
    output = terminal.read()
    terminal.close()
    assert terminal.exitstatus == 0, output
    assert not [word for word in FOREIGN if word in output], output
    if line[0] == "train":
        assert output.count("steps of uptrain") and "21/21" in output
