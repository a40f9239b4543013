"""What the system refuses a command is one line and leaves nothing behind: full disks and outputs, few descriptors."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_library import PROGRAM, Shell
from tests.conftest import PREBUILT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full and limits, as Linux has them"),
]
SMALL = 20_000  # bytes a file may have
LIMITS = "import resource, sys; limit = int(sys.argv.pop(1)); resource.setrlimit(resource.{name}, (limit, limit))\n"


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shutil.copytree(PREBUILT, tmp_path / "bundle")
    return Shell(tmp_path)


def limited(shell: Shell, name: str, limit: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command whose files, or how many are open, are limited."""
    code = LIMITS.format(name=name) + PROGRAM
    command = [sys.executable, "-P", "-c", code, str(limit), *map(str, arguments)]
    return subprocess.run(command, env=shell.environment, cwd=shell.folder, capture_output=True, encoding="utf-8")


def everything(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def said_in_one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error of a command that must fail; what is above it is progress."""
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    return line


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "bundle", "Hi", "--max-tokens", "3"),
        ("generate", "bundle", "Hi", "--max-tokens", "3", "--json"),
        ("inspect", "bundle"),
        ("verify", "bundle"),
        ("list", "--json"),
        ("--help",),
        ("export", "--help"),
        ("--version",),
    ],
)
def test_a_full_output_is_one_line(shell: Shell, arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, *arguments],
            env=shell.environment, cwd=shell.folder, stdout=full, stderr=subprocess.PIPE, encoding="utf-8",
        )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    message = json.loads(done.stderr)["error"]["message"] if "--json" in arguments else done.stderr
    assert "standard output: No space left on device" in message


def commands(recursive: Path, source: Path, data: Path) -> dict[str, tuple[object, ...]]:
    """Every command that writes, to places where nothing is."""
    return {
        "convert": ("convert", source, "out"),
        "export": ("export", recursive, "out"),
        "train": ("train", recursive, "out", "--data", data, "--stages", "uptrain", "--max-steps", "2", "--batch", "2"),
        "pull": ("pull", "bundle", "--name", "out"),
        "generate": ("generate", "bundle", "Hi", "--max-tokens", "2", "--weight-cache", "cache"),
    }


@pytest.mark.parametrize("command", ["convert", "export", "train", "pull", "generate"])
def test_files_that_may_not_be_large_enough_leave_nothing(
    shell: Shell, command: str, recursive: Path, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = tmp_path_factory.mktemp("data") / "data.txt"
    data.write_text("The cat sees the hen.\n" * 20)
    before = everything(shell.folder)
    said_in_one_line(limited(shell, "RLIMIT_FSIZE", SMALL, *commands(recursive, source, data)[command]))
    left = [name for name in everything(shell.folder) if name not in before]
    assert [name for name in left if name not in ("home", "home/downloads", "cache")] == []


def test_a_bundle_that_cannot_be_calibrated_stays_as_it_was(shell: Shell) -> None:
    data = shell.folder / "data.txt"
    data.write_text("The cat sees the hen.\n" * 20)
    before, manifest = everything(shell.folder), (shell.folder / "bundle" / "manifest.json").read_bytes()
    line = said_in_one_line(limited(shell, "RLIMIT_FSIZE", 1000, "calibrate", "bundle", "--data", data))
    assert "ulimit -f" in line
    assert everything(shell.folder) == before and (shell.folder / "bundle" / "manifest.json").read_bytes() == manifest


@pytest.mark.parametrize("command", ["export", "pull", "generate"])
@pytest.mark.parametrize("descriptors", [4, 5, 6, 8, 12])
def test_few_descriptors_are_enough_or_one_line(
    shell: Shell, command: str, descriptors: int, recursive: Path, source: Path
) -> None:
    before = everything(shell.folder)
    done = limited(shell, "RLIMIT_NOFILE", descriptors, *commands(recursive, source, Path())[command])
    if done.returncode:
        said_in_one_line(done)
        left = [name for name in everything(shell.folder) if name not in before]
        assert [name for name in left if name not in ("home", "home/downloads", "cache")] == []


@pytest.mark.parametrize("place", ["/proc/here", "/dev/null/here", "/proc/self/here"])
@pytest.mark.parametrize("command", ["convert", "export", "train"])
def test_places_that_take_nothing_are_one_line(
    shell: Shell, command: str, place: str, recursive: Path, source: Path, data_file: Callable[[], Path]
) -> None:
    arguments = [place if one == "out" else one for one in commands(recursive, source, data_file())[command]]
    said_in_one_line(shell(*arguments))


def bound_by_permissions() -> list[str]:
    """What stands before a command so that permissions bind it: root gives up what lets it write everywhere."""
    if os.geteuid():
        return []
    program = shutil.which("setpriv")
    if program is None:
        pytest.skip("root writes everywhere; needs setpriv")
    bound = [program, "--bounding-set=-dac_override,-dac_read_search,-fowner", "--inh-caps=-all"]
    if subprocess.run([*bound, "true"], capture_output=True).returncode:
        pytest.skip("root writes everywhere, and may give up nothing here")
    return bound


@pytest.mark.parametrize(
    "command", ["convert", "export", "train", "pull", "generate", "calibrate", "rm", "pull --force", "chat"]
)
def test_folders_that_may_not_be_written_are_one_line(
    shell: Shell, command: str, recursive: Path, source: Path, data_file: Callable[[], Path]
) -> None:
    """A user whom permissions bind, and folders of which none may be written."""
    bound, data = bound_by_permissions(), data_file()
    assert shell("pull", "bundle", "--name", "installed").returncode == 0
    more = {
        "calibrate": ("calibrate", "bundle", "--data", data), "rm": ("rm", "installed", "--yes"),
        "pull --force": ("pull", "bundle", "--name", "installed", "--force"), "chat": ("chat", "bundle"),
    }  # fmt: skip
    arguments = {**commands(recursive, source, data), **more}[command]
    folders = [shell.folder, *(path for path in shell.folder.rglob("*") if path.is_dir())]
    before = everything(shell.folder)
    try:
        for folder in folders:
            folder.chmod(0o555)
        done = subprocess.run(
            [*bound, sys.executable, "-P", "-c", PROGRAM, *map(str, arguments)], env=shell.environment,
            cwd=shell.folder, capture_output=True, encoding="utf-8", input="hello\n/save kept.json\n",
        )  # fmt: skip
    finally:
        for folder in folders:
            folder.chmod(0o755)
    assert "ermission denied" in said_in_one_line(done)
    assert everything(shell.folder) == before


@pytest.fixture
def data_file(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        path = tmp_path / "data.txt"
        path.write_text("The cat sees the hen.\n" * 20)
        return path

    return make
