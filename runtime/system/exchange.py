"""What a rename needs to be safe: contents on the disk before it, and two folders that change places in one step."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

_HERE = -100  # AT_FDCWD
_RENAME_EXCHANGE = 2  # of Linux
_RENAME_SWAP = 2  # of macOS


def exchange(first: Path, second: Path) -> bool:
    """Let two paths that exist change places in one step; False where the system or the file system cannot."""
    sys.audit("rrt_edge.exchange", str(first), str(second))
    call = _call()
    return call is not None and call(os.fsencode(first), os.fsencode(second)) == 0


@cache
def _call() -> Callable[[bytes, bytes], int] | None:
    """The C library's function, where it has one."""
    if sys.platform == "win32":
        return None
    library = ctypes.CDLL(None)
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        return lambda first, second: int(library.renamex_np(first, second, ctypes.c_uint(_RENAME_SWAP)))
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        return lambda first, second: int(
            library.renameat2(_HERE, first, _HERE, second, ctypes.c_uint(_RENAME_EXCHANGE))
        )
    return None


def settle(path: Path, mode: int) -> None:
    """Give a file, or every file of a folder, the mode that new files have, and wait until the disk has it all.

    Some libraries write files that nobody but the owner may read.
    """
    if path.is_dir():
        for entry in sorted(path.iterdir()):
            if not entry.is_symlink():
                settle(entry, mode)
        sync_folder(path)
        return
    if sys.platform != "win32" and path.stat().st_mode & 0o777 != mode:
        path.chmod(mode)
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, where the system can say so."""
    if sys.platform == "win32":
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # one that may be written but not read
        return
    try:
        os.fsync(descriptor)
    except OSError:  # not on every file system
        pass
    finally:
        os.close(descriptor)
