"""`python samples/proofread`: files, pipes, differences, status, terminals, interruptions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

from rrt_edge.runtime import RRTEdgeError
from tests.conftest import ROOT
from tests.samples.proofreader import LOOP

PROGRAM = [sys.executable, "-P", str(ROOT / "samples" / "proofread")]
TEXT = "He go to school every day.\r\n\r\nThis is right as it stands.\n\n\tThey don't knows.  "
RIGHT = "He goes to school every day.\r\n\r\nThis is right as it stands.\n\n\tThey don't know.  "
TERMINAL = {"TERM": "xterm-256color", "PATH": os.environ["PATH"], "COLUMNS": "200"}
Run = Callable[..., tuple[int, bytes, str]]


@pytest.fixture
def run(package: ModuleType, proofreader_bundle: Path, capfdbinary: Any) -> Run:
    """The program in this process: its status, output and errors."""
    import command

    def start(*arguments: object) -> tuple[int, bytes, str]:
        status = command.main([*map(str, arguments), "--bundle", str(proofreader_bundle)])
        sys.stdout.flush()
        out, error = capfdbinary.readouterr()
        return status, out, error.decode()

    return start


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "note.txt"
    path.write_bytes(TEXT.encode())
    path.chmod(0o640)
    return path


def test_a_file_comes_out_corrected_to_the_byte(run: Run, file: Path) -> None:
    assert run(file) == (0, RIGHT.encode(), "")
    assert file.read_bytes() == TEXT.encode()


def test_a_pipe(proofreader_bundle: Path) -> None:
    command = [*PROGRAM, "--bundle", str(proofreader_bundle)]
    piped = subprocess.run(command, input=TEXT.encode(), capture_output=True)
    assert (piped.returncode, piped.stdout, piped.stderr) == (0, RIGHT.encode(), b"")


def test_the_diff_is_one_that_patch_takes(run: Run, file: Path) -> None:
    status, diff, _ = run("--diff", file)
    assert status == 1 and diff.count(b"\n-") == 2 and b"\n\\ No newline at end of file\n" in diff
    command, diff = ["git", "apply", "--unsafe-paths", "-p0", "-"], diff.replace(str(file).encode(), b"note.txt")
    patch = subprocess.run(command, input=diff, cwd=file.parent, capture_output=True)
    assert patch.returncode == 0 and file.read_bytes() == RIGHT.encode()
    assert run("--diff", file) == (0, b"", "")


def test_in_place_writes_what_changed_and_keeps_mode_and_links(run: Run, file: Path) -> None:
    link, right = file.with_name("link.txt"), file.with_name("right.txt")
    link.symlink_to(file.name)
    right.write_bytes(RIGHT.encode())
    before = right.stat()
    status, out, error = run("--in-place", link, right)
    assert (status, out.decode(), error) == (1, f"{link}: 2 corrections\n", "")
    assert link.is_symlink() and file.read_bytes() == RIGHT.encode() and file.stat().st_mode & 0o777 == 0o640
    assert right.stat().st_mtime_ns == before.st_mtime_ns and right.stat().st_ino == before.st_ino
    assert run("--in-place", link, right)[0] == 0
    assert sorted(path.name for path in file.parent.iterdir()) == ["link.txt", "note.txt", "right.txt"]


def test_a_file_that_was_changed_meanwhile_stays(package: ModuleType, file: Path) -> None:
    import files

    document = files.read(file)
    file.write_text("newer")
    with pytest.raises(files.UnusableError, match="was changed meanwhile"):
        files.replace(document, "older")
    assert file.read_text() == "newer" and list(file.parent.iterdir()) == [file]


def test_check_says_which_files_have_something_to_change(run: Run, file: Path) -> None:
    right = file.with_name("right.txt")
    right.write_bytes(RIGHT.encode())
    assert run("--check", right, file) == (1, f"{file}: 2 corrections\n".encode(), "")
    assert run("--check", right) == (0, b"", "")


def test_markdown_by_name_and_by_option(run: Run, tmp_path: Path) -> None:
    text = "    He go to school every day.\n\nThey *don't* knows.\n"
    for name, options, right in (
        ("a.md", (), text.replace("knows", "know")),
        ("a.md", ("--text",), text.replace(" go ", " goes ")),
        ("a.txt", ("--markdown",), text.replace("knows", "know")),
    ):
        (tmp_path / name).write_text(text)
        assert run(tmp_path / name, *options)[1].decode() == right


def test_what_was_left_is_said_by_file_and_line(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"They don't knows.\n\n{LOOP}\n")
    status, out, error = run(path)
    assert (status, out.decode()) == (0, f"They don't know.\n\n{LOOP}\n")
    assert re.fullmatch(
        rf"{re.escape(str(path))}:3: left as it was: the model's reply had no end within \d+ tokens\n", error
    )


def test_depths_without_colours_stand_behind_the_tokens(run: Run, file: Path) -> None:
    status, out, _ = run("--show-depth", "--point", "balanced", file)
    text = out.decode()
    assert status == 0 and {"\u00b9", "\u00b2"} < set(text) and re.sub("[\u00b9\u00b2]", "", text) == RIGHT


def test_files_that_cannot_be_used_are_told_in_a_line_each_and_the_others_are_corrected(run: Run, file: Path) -> None:
    missing, latin = file.with_name("none.txt"), file.with_name("latin.txt")
    latin.write_bytes("caf\u00e9".encode("latin-1"))
    status, out, error = run(missing, latin, file)
    assert (status, out) == (2, RIGHT.encode())
    assert error == (
        f"error: {missing}: cannot be read (No such file or directory)\nerror: {latin}: is not UTF-8 (byte 0xe9 at 3)\n"
    )
    assert run("--in-place", "-")[::2] == (2, "error: standard input: --in-place needs a file\n")


def test_a_bundle_or_a_point_that_is_not_there_is_one_line(run: Run, file: Path, monkeypatch: Any) -> None:
    from proofread import proofreader

    monkeypatch.setattr(proofreader, "BUNDLE", file.parent / "bundle")
    with pytest.raises(RRTEdgeError, match="bundle: the proofreader's bundle is not there; name one with --bundle"):
        proofreader.Proofreader.load()
    status, out, error = run("--point", "swift", file)
    assert (status, out) == (2, b"") and "fast, balanced, faithful" in error and error.count("\n") == 1
    assert run("--sure", "2", file) == (2, b"", "error: sure: must be a probability from 0 to 1, not 2.0\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of POSIX")
def test_a_terminal_shows_changes_in_colours_or_marks_and_depths(proofreader_bundle: Path, file: Path) -> None:
    pexpect = pytest.importorskip("pexpect")

    def shown(*options: str, **environment: str) -> str:
        command = [*PROGRAM[1:], str(file), "--bundle", str(proofreader_bundle), *options]
        environment = {**TERMINAL, **environment}
        child = pexpect.spawn(PROGRAM[0], command, env=environment, encoding="utf-8", timeout=300)
        child.expect(pexpect.EOF)
        return child.before

    coloured = shown()
    assert "He \x1b[9;31mgo\x1b[0m\x1b[1;32mgoes\x1b[0m to school" in coloured
    assert "2 corrections, mean depth 1." in coloured
    plain = shown(NO_COLOR="1")
    assert "He [-go-]{+goes+} to school" in plain and "\x1b[9;31m" not in plain
    depths = shown("--show-depth")
    assert "\x1b[32m" in depths and "\x1b[33m" in depths and "left after loop" in depths


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of POSIX")
def test_ctrl_c_is_one_line_and_nothing_half_written(proofreader_bundle: Path, tmp_path: Path) -> None:
    pexpect = pytest.importorskip("pexpect")
    path = tmp_path / "long.txt"
    path.write_text("".join(f"The {number} of them go to school every day.\n\n" for number in range(3000)))
    before = path.read_bytes()
    command = [*PROGRAM[1:], "--in-place", str(path), "--bundle", str(proofreader_bundle)]
    child = pexpect.spawn(PROGRAM[0], command, env=TERMINAL, encoding="utf-8", timeout=300)
    child.expect(r"/3000")
    child.sendintr()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130 and "interrupted; nothing half written" in child.before
    assert "Traceback" not in child.before
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_picture_shows_both_and_loads_nothing(proofreader_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "picture.svg"
    program = [sys.executable, str(ROOT / "samples" / "proofread" / "picture.py"), str(proofreader_bundle), str(out)]
    subprocess.run([*program, "--text", "I seen the the dog. They don't knows."], check=True, capture_output=True)
    lines: dict[str, str] = {}
    for node in ElementTree.parse(out).iter("{http://www.w3.org/2000/svg}text"):  # spaces are places between them
        lines[node.attrib["y"]] = lines.get(node.attrib["y"], "") + "".join((node.text or "").split())
    texts = ["Iseensawthethedog.Theydon'tknowsknow.", "Isawthedog.Theydon'tknow.", "leftafterloop12"]
    assert [line for line in lines.values() if line and not line.startswith("$")] == texts
    drawing = out.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in drawing and drawing.count("url(") == drawing.count("url(#") > 0
