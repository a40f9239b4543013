"""Bytes that are no text, and consoles that cannot say all: a line or a mark, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rrt_edge.runtime import BadInputError, Model

LATIN_1 = b"caf\xe9 au lait"
COMPLAINT = "error: the text is not valid UTF-8: byte 0xe9, behind 'caf'; convert it to UTF-8"


def run(arguments: list[str | bytes], stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    command: list[str | bytes] = [sys.executable, "-P", "-c", "from rrt_edge.cli import main; main()", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, env={**os.environ, **environment}, check=False)


@pytest.mark.parametrize("command", ["generate", "chat"])
@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C"}, {"PYTHONUTF8": "1"}], ids=str)
def test_latin_1_on_standard_input_is_told(bundle: Path, command: str, environment: dict[str, str]) -> None:
    done = run([command, str(bundle), "--max-tokens", "3"], LATIN_1 + b"\n", **environment)
    assert done.returncode == 2
    lines = done.stderr.decode().splitlines()
    assert lines == [COMPLAINT]


@pytest.mark.skipif(os.name == "nt", reason="arguments are no bytes on Windows")
def test_latin_1_as_an_argument_is_told(bundle: Path) -> None:
    for arguments in ([LATIN_1], [b"--raw", LATIN_1], [b"--system", LATIN_1, b"Hi"]):
        done = run(["generate", str(bundle), "--max-tokens", "3", *arguments])
        assert done.returncode == 2 and done.stderr.decode().startswith(COMPLAINT)


def test_python_and_the_command_line_say_the_same(bundle: Path) -> None:
    with Model.load(bundle) as model:
        for call in (model.encode, lambda text: model.encode_chat([{"role": "user", "content": text}])):
            with pytest.raises(BadInputError, match=r"not valid UTF-8: half a character, U\+D83D alone, behind 'so '"):
                call("so \ud83d")


def test_what_a_console_cannot_say_has_a_mark(bundle: Path) -> None:
    with Model.load(bundle) as model:
        ids = model.tokenizer.encode("日", add_special_tokens=False).ids
    biases = [part for token in ids for part in ("--logit-bias", f"{token}=100")]
    sampling = ["--max-tokens", "24", "--temperature", "1", "--seed", "1", *biases]
    for more in ([], ["--show-depth"]):
        done = run(["generate", str(bundle), "hello", *sampling, *more], PYTHONIOENCODING="cp1252")
        assert done.returncode == 0, done.stderr
        assert b"?" in done.stdout and b"Traceback" not in done.stderr


def test_no_prompt_is_no_question(bundle: Path) -> None:
    for arguments, stdin in (([], b""), (["-"], b" \n"), (["--raw"], b"\n")):
        done = run(["generate", str(bundle), *arguments], stdin)
        assert done.returncode == 2 and done.stdout == b""
        assert done.stderr.decode() == "error: no prompt; give it as an argument, or on standard input\n"
