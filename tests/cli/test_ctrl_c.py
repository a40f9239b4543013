"""Ctrl-C at many moments of a command: at most one line, no traceback, nothing half written; and outputs that close."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_library import PROGRAM, Shell
from tests.conftest import PREBUILT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT, and closes pipes"),
]
INTERRUPTED = "error: interrupted; nothing half written was left behind\n"
MOMENTS = 8  # of a command, evenly among what it does
AT = """
import os, signal, sys
moment, seen = int(sys.argv.pop(1)), 0
def count(event, arguments):
    global seen
    seen += 1
    if seen == moment:
        os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(count)
sys.argv[0] = "rrt-edge"
try:
    from rrt_edge.cli import main
    main()
finally:
    if not moment:
        os.write(2, b"%d" % seen)
"""  # audit events: imports, files opened, processes started and more; the same ones each time, or nearly so


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shutil.copytree(PREBUILT, tmp_path / "bundle")
    (tmp_path / "data.txt").write_text("The cat sees the hen.\n" * 20)
    return Shell(tmp_path)


COMMANDS: dict[str, tuple[str, ...]] = {
    "--help": ("--help",),
    "generate": ("generate", "bundle", "Hi", "--max-tokens", "4"),
    "generate --json": ("generate", "bundle", "Hi", "--max-tokens", "4", "--json"),
    "chat": ("chat", "bundle"),
    "pull": ("pull", "bundle", "--name", "tiny"),
    "list": ("list",),
    "rm": ("rm", "nothing", "--yes"),
    "inspect": ("inspect", "bundle", "--graph"),
    "verify": ("verify", "bundle"),
    "eval": ("eval", "bundle", "--data", "data.txt"),
    "calibrate": ("calibrate", "bundle", "--data", "data.txt"),
    "bench": ("bench", "bundle", "--prompt", "6", "--new", "4", "--repeats", "1"),
    "devices": ("devices",),
    "doctor": ("doctor",),
    "completion": ("completion", "bash"),
}
WRITING = {"convert": ("convert", "SOURCE", "out"), "export": ("export", "RECURSIVE", "out")}


@pytest.mark.parametrize("name", [*COMMANDS, *WRITING])
def test_an_interrupt_ends_a_command_quietly_at_every_moment(
    name: str, shell: Shell, request: pytest.FixtureRequest
) -> None:
    line = COMMANDS.get(name) or tuple(
        str(request.getfixturevalue(part.lower())) if part.isupper() else part for part in WRITING[name]
    )

    def run(moment: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-P", "-c", AT, str(moment), *line], env=shell.environment, cwd=shell.folder,
            input="hello\n", capture_output=True, encoding="utf-8",
        )  # fmt: skip

    events = int(run(0).stderr.rpartition("\n")[2] or 0)
    assert events > 100
    shutil.rmtree(shell.folder / "out", ignore_errors=True)
    before = {path for path in shell.folder.rglob("*") if "home" not in path.parts}
    for moment in range(events // MOMENTS // 2, events, events // MOMENTS):
        done = run(moment)
        told = done.stderr.count("interrupted")
        assert done.returncode in (130, -signal.SIGINT, 0, 1, 2), (moment, done.stderr)
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, (moment, done.stderr)
        assert told <= 1 and (done.returncode != 130 or told == 1), (moment, done.stderr)
        whole = [path for path in (shell.folder / "out", shell.home / "bundles" / "tiny") if path.exists()]
        left = {path for path in shell.folder.rglob("*") if "home" not in path.parts} - before
        assert all(path.is_relative_to(shell.folder / "out") for path in left), (moment, left)
        assert all((path / "manifest.json").exists() or (path / "config.json").exists() for path in whole), moment
        shutil.rmtree(shell.folder / "out", ignore_errors=True)
        shutil.rmtree(shell.home / "bundles" / "tiny", ignore_errors=True)


@pytest.mark.parametrize(
    "becomes", ["ImportError('initialization failed')", "ModuleNotFoundError(name='it')", "BadInputError('no')"]
)
@pytest.mark.parametrize("cause", [" from error", ""])
def test_an_interrupt_that_a_library_makes_another_error_of_is_one(becomes: str, cause: str, shell: Shell) -> None:
    """As onnxruntime does of one in the middle of its import."""
    (shell.folder / "slow.py").write_text(
        "import os, signal, time\nfrom rrt_edge.runtime import BadInputError\ntry:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n    while True:\n        time.sleep(0.01)\n"
        f"except BaseException as error:\n    raise {becomes}{cause}\n"
    )
    code = (
        "import sys; sys.path.insert(0, '.')\nfrom rrt_edge.cli import main, list\n"
        "import rrt_edge.runtime.library.store as store\n"
        "def installed():\n    import slow\n"
        "store.installed = installed\nmain()\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, "list"], env=shell.environment, cwd=shell.folder, capture_output=True,
        encoding="utf-8",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", INTERRUPTED)


def test_what_measures_ends_without_a_word_of_its_own(shell: Shell) -> None:
    pexpect = pytest.importorskip("pexpect")
    line = ["bench", "bundle", "--prompt", "6", "--new", "200", "--repeats", "1000"]
    terminal = pexpect.spawn(
        sys.executable, ["-P", "-c", PROGRAM, *line], env=shell.environment, cwd=str(shell.folder), encoding="utf-8",
        timeout=None,
    )  # fmt: skip
    terminal.expect_exact("measured")
    terminal.sendintr()
    output = terminal.read().replace("\r\n", "\n")
    terminal.close()
    assert terminal.exitstatus == 130 and output.endswith(INTERRUPTED) and "Traceback" not in output, output


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_goes_away_is_no_error_to_tell(name: str, shell: Shell) -> None:
    """As `rrt-edge .. | head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, *COMMANDS[name]], env=shell.environment, cwd=shell.folder,
            input="hello\n", stdout=writing, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    finally:
        os.close(writing)
    assert done.returncode in (1, 2) and done.stderr.count("\n") <= 1, done.stderr
    assert "Traceback" not in done.stderr and "roken pipe" not in done.stderr, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "rm"])
def test_a_full_output_is_one_line_of_every_command(name: str, shell: Shell) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, *COMMANDS[name]], env=shell.environment, cwd=shell.folder,
            input="hello\n", stdout=full, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    errors = [row for row in done.stderr.splitlines() if row.startswith(("error", "{"))]
    assert done.returncode == 1 and len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    assert "standard output: No space left on device" in errors[0]
