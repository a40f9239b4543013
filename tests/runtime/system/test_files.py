"""What is written is whole or what was there stays: two writers, exchanges, what killed runs left, full disks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rrt_edge.runtime import BadInputError, RRTEdgeError
from rrt_edge.runtime.system import exchange as exchange_module
from rrt_edge.runtime.system import files
from rrt_edge.runtime.system.files import (
    new_file,
    new_folder,
    recover,
    remove_folder,
    scratch_folder,
    sweep_scratch,
    writing,
)
from rrt_edge.runtime.system.locks import BusyError, lock_path, locked


def is_ours(folder: Path) -> bool:
    return (folder / "ours").is_file()


def write(out: Path, text: str) -> None:
    with new_folder(out, "thing", is_ours) as folder:
        (folder / "ours").write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["in one step", "in two"])
def swaps(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the system's exchange of two folders, where it has one, and without."""
    if request.param == "in two":
        monkeypatch.setattr(exchange_module, "_call", lambda: None)
    return str(request.param)


@pytest.mark.usefixtures("swaps")
def test_a_folder_is_replaced_and_nothing_else_is_left(tmp_path: Path) -> None:
    for text in ("old", "new"):
        write(tmp_path / "out", text)
        assert (tmp_path / "out" / "ours").read_text() == text and names(tmp_path) == ["out"]
    with pytest.raises(KeyError), new_folder(tmp_path / "out", "thing", is_ours):
        raise KeyError
    assert (tmp_path / "out" / "ours").read_text() == "new" and names(tmp_path) == ["out"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has renameat2")
def test_the_system_exchanges_folders_in_one_step(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    assert exchange_module.exchange(tmp_path / "a", tmp_path / "b")
    assert names(tmp_path / "a") == ["b"] and names(tmp_path / "b") == ["a"]
    assert not exchange_module.exchange(tmp_path / "a", tmp_path / "none")


@pytest.mark.parametrize("same_process", [True, False])
def test_a_second_writer_is_told_who_writes(tmp_path: Path, same_process: bool) -> None:
    out = tmp_path / "out"
    write(out, "old")
    with new_folder(out, "thing", is_ours) as folder:
        (folder / "ours").write_text("first")
        if same_process:
            errors: list[Exception] = []

            def second() -> None:
                try:
                    write(out, "second")
                except RRTEdgeError as error:
                    errors.append(error)

            thread = threading.Thread(target=second)
            thread.start()
            thread.join()
            message = str(errors[0])
        else:
            code = "import sys; from pathlib import Path; from rrt_edge.runtime.system.files import new_folder\n"
            code += "with new_folder(Path(sys.argv[1]), 'thing', lambda _: True): pass"
            done = subprocess.run([sys.executable, "-P", "-c", code, out], capture_output=True, text=True)
            message = done.stderr.splitlines()[-1]
        assert f"process {os.getpid()} (" in message and "is writing it" in message
    assert (out / "ours").read_text() == "first" and names(tmp_path) == ["out"]


def test_a_lock_can_be_had_again_by_its_holder_and_is_gone_afterwards(tmp_path: Path) -> None:
    with writing(tmp_path / "out"), locked(tmp_path / "out"):
        write(tmp_path / "out", "text")
        assert lock_path(tmp_path / "out").is_file()
    assert names(tmp_path) == ["out"]


def test_the_lock_of_a_killed_process_holds_nobody_up(tmp_path: Path) -> None:
    code = "import os, sys; from pathlib import Path; from rrt_edge.runtime.system.locks import locked\n"
    code += "with locked(Path(sys.argv[1])): os._exit(9)"
    assert subprocess.run([sys.executable, "-P", "-c", code, tmp_path / "out"]).returncode == 9
    assert names(tmp_path) == [".out.lock"]
    write(tmp_path / "out", "text")
    assert names(tmp_path) == ["out"]


def test_changes_by_many_threads_are_all_kept(tmp_path: Path) -> None:
    """Each reads, adds a line and writes; nobody's line is lost."""
    path = tmp_path / "lines"

    def add(line: str) -> None:
        for number in range(5):
            with new_file(path) as partial:
                partial.write_text((path.read_text() if path.exists() else "") + f"{line}{number}\n")

    threads = [threading.Thread(target=add, args=(letter,)) for letter in "abcdef"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(path.read_text().splitlines())) == 30 and names(tmp_path) == ["lines"]


@pytest.mark.parametrize("kind", ["partial", "gone", "1234-0123abcd.partial", "1234-0123abcd.gone"])
def test_what_killed_runs_left_is_cleared_by_the_next(tmp_path: Path, kind: str) -> None:
    (tmp_path / f".out.{kind}").mkdir()
    (tmp_path / f".out.{kind}" / "half").touch()
    (tmp_path / ".out.more.1234-0123abcd.partial").mkdir()  # of another target
    write(tmp_path / "out", "text")
    assert names(tmp_path) == [".out.more.1234-0123abcd.partial", "out"]


def test_whoever_opens_a_missing_folder_puts_the_whole_old_one_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    out.rename(tmp_path / ".out.1234-0123abcd.old")
    (tmp_path / ".out.1234-0123abcd.partial").mkdir()
    recover(out)
    assert (out / "ours").read_text() == "old"
    write(out, "new")
    assert names(tmp_path) == ["out"]
    out.rename(tmp_path / ".out.1234-0123abcd.old")
    with pytest.raises(KeyError), new_folder(out, "thing", is_ours):  # the next writer does too
        raise KeyError
    assert (out / "ours").read_text() == "new" and names(tmp_path) == ["out"]


def test_what_is_removed_is_not_put_back(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "new")
    (tmp_path / ".out.1234-0123abcd.old").mkdir()  # of a run killed after its second rename
    remove_folder(out)
    recover(out)
    assert names(tmp_path) == []


def test_scratch_folders_of_killed_runs_go_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "unpacked-old").mkdir()
    (tmp_path / ".unpacked-gone.lock").touch()
    sweep_scratch(tmp_path, "unpacked")
    assert names(tmp_path) == []
    with scratch_folder(tmp_path, "unpacked") as first:
        thread_names: list[list[str]] = []

        def second() -> None:
            sweep_scratch(tmp_path, "unpacked")
            with scratch_folder(tmp_path, "unpacked") as folder:
                thread_names.append([name for name in names(tmp_path) if not name.startswith(".")])
                assert folder != first

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        assert len(thread_names[0]) == 2 and first.name in thread_names[0]
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX'")
@pytest.mark.parametrize("umask", [0o022, 0o077, 0o027])
def test_files_have_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with new_folder(tmp_path / "out", "thing", is_ours) as folder:
            (folder / "ours").touch(0o600)
        with new_file(tmp_path / "file") as partial:
            partial.unlink()
            partial.touch(0o600)  # as libraries do that write beside and rename
    finally:
        os.umask(before)
    for path in (tmp_path / "out" / "ours", tmp_path / "file"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("make", [new_file, lambda out: new_folder(out, "thing", is_ours)], ids=["file", "folder"])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "x"), "the disk is full"),
        (OSError(errno.EFBIG, "x"), "ulimit -f"),
        (OSError(errno.EMFILE, "x"), "ulimit -n"),
        (OSError(errno.EROFS, "x"), "cannot be written"),
        (OSError(errno.EIO, "x"), "cannot be written"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (RuntimeError("I/O error: File too large (os error 27)"), "ulimit -f"),
    ],
)
def test_what_the_system_says_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], Iterator[Path]], error: Exception, message: str
) -> None:
    with pytest.raises(RRTEdgeError, match=message), make(tmp_path / "out"):  # type: ignore[attr-defined]
        raise error
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="devices and pipes have names on POSIX")
def test_what_is_not_a_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(BadInputError, match="name a file"), new_file(place):
            pass
    assert names(tmp_path) == ["pipe"]


def test_names_as_long_as_can_be_are_written_and_longer_ones_refused(tmp_path: Path) -> None:
    write(tmp_path / ("a" * 255), "text")
    with pytest.raises(BadInputError, match="cannot be written"):
        write(tmp_path / ("a" * 256), "text")
    assert names(tmp_path) == ["a" * 255]


def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of the calls: files, folder, then the rename, then the folder it is in."""
    calls: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        calls.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        calls.append(f"rename to {target.name}")
        return rename(path, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    with new_folder(tmp_path / "out", "thing", is_ours) as folder:
        (folder / "a").touch()
        (folder / "b").touch()
        name = folder.name
    assert calls == ["sync a", "sync b", f"sync {name}", "rename to out", f"sync {tmp_path.name}"]


def test_a_busy_target_is_waited_for_as_long_as_asked(tmp_path: Path) -> None:
    started, ended = threading.Event(), threading.Event()

    def first() -> None:
        with locked(tmp_path / "out"):
            started.set()
            ended.wait()

    thread = threading.Thread(target=first)
    thread.start()
    started.wait()
    with pytest.raises(BusyError), locked(tmp_path / "out"):
        pass
    ended.set()
    with locked(tmp_path / "out", 60.0):
        pass
    thread.join()
    assert names(tmp_path) == [] and files.abandoned(tmp_path) == []
