"""Locks between processes and threads, so that one at a time writes a file or folder, and others learn which."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import platform
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from rrt_edge.runtime.errors import RRTEdgeError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

PAUSE = 0.05  # seconds between two tries
LONGEST_NAME = 180  # bytes of a target's name that is part of the names of what is beside it
SAME_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS)  # nothing can be made beside the target
WITHOUT_LOCKS = (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS, errno.EINVAL)  # some network file systems
_BEYOND = 1 << 30  # the byte that is locked on Windows, where what is locked cannot be read
_held: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())
log = logging.getLogger(__name__)


class BusyError(RRTEdgeError):
    """Another process or thread is writing the same."""


@contextmanager
def locked(target: Path, patience: float = 0.0) -> Iterator[bool]:
    """Be the only one who writes `target` while the block runs; inside the block the same may be locked again.

    The lock is a file beside the target that the system unlocks when its process ends, however it ends.

    Args:
        target: a file or folder, there or not, in a folder that is there.
        patience: seconds to wait for another who writes it.

    Yields:
        Whether nobody else can be writing it; False on file systems that have no locks.

    Raises:
        BusyError: another process or thread writes it; names the process.
        OSError: no lock can be made there.
    """
    target = target.resolve()
    if target in _held.get():
        yield True
        return
    path, descriptor, alone = _acquire(target, patience)
    before = _held.set(_held.get() | {target})
    try:
        yield alone
    finally:
        _held.reset(before)
        _release(path, descriptor)


def stem(target: Path) -> str:
    """How the names of everything begin that stands beside a target for its sake."""
    name = target.name
    short = name if len(name.encode()) <= LONGEST_NAME else hashlib.sha256(name.encode()).hexdigest()[:32]
    return f".{short}"


def lock_path(target: Path) -> Path:
    """Where the lock of a target is while it is held."""
    return target.with_name(f"{stem(target)}.lock")


def _acquire(target: Path, patience: float) -> tuple[Path, int, bool]:
    deadline, waits = time.monotonic() + patience, False
    while True:
        path, descriptor = _opened(target)
        try:
            alone = _lock(descriptor)
            holder = "" if alone is not False else _holder(descriptor)
            if alone is None:
                return path, descriptor, False
            if alone and _is_still(path, descriptor):
                _name_holder(descriptor)
                return path, descriptor, True
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if alone:  # its last holder removed it in between
            continue
        if time.monotonic() >= deadline:
            raise BusyError(f"{target}: {holder} is writing it; wait for that to end, or choose another place")
        if not waits:
            log.warning("%s: waiting for %s, which is writing it", target, holder)
            waits = True
        time.sleep(PAUSE)


def _opened(target: Path) -> tuple[Path, int]:
    """The lock's file beside the target; inside it, where nothing can be made beside it and so nobody replaces it."""
    path = lock_path(target)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    try:
        return path, os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno not in SAME_PLACE or not target.is_dir():
            raise
    path = target / ".lock"
    return path, os.open(path, flags, 0o666)


def _lock(descriptor: int) -> bool | None:
    """Whether it could be locked; None where the file system has no locks."""
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, _BEYOND, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in WITHOUT_LOCKS else False
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether the file that was opened is still the one of that name."""
    if sys.platform == "win32":  # an open file cannot be removed there
        return True
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _name_holder(descriptor: int) -> None:
    command = Path(sys.argv[0] if sys.argv else "").stem
    if len(sys.argv) > 1 and sys.argv[1].isalpha():
        command += f" {sys.argv[1]}"
    line = f"process {os.getpid()} ({command or 'python'}) on {platform.node()}, since {time.strftime('%H:%M:%S')},"
    with contextlib.suppress(OSError):  # a full disk; the lock holds without it
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, line.encode())


def _holder(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        os.lseek(descriptor, 0, os.SEEK_SET)
        line = os.read(descriptor, 300).decode("utf-8", "replace")
        if line.startswith("process ") and line.isprintable():
            return line
    return "another process"


def _release(path: Path, descriptor: int) -> None:
    if sys.platform != "win32":
        with contextlib.suppress(OSError):
            if stat.S_ISREG(path.lstat().st_mode) and _is_still(path, descriptor):
                path.unlink()  # while it is locked: who opened it meanwhile sees that it is gone
        os.close(descriptor)
        return
    os.close(descriptor)
    with contextlib.suppress(OSError):
        path.unlink()
