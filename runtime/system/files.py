"""Write folders so that a reader sees the whole of one or none of it, and hash what is in them."""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError

CHUNK = 1 << 20  # bytes hashed at a time


@contextmanager
def new_folder(out: Path, kind: str, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its place when the block ends well, and is removed otherwise.

    Args:
        out: where the folder is wanted; may hold an earlier folder of the same kind, which is replaced.
        kind: what is written, for messages: "bundle", "checkpoint".
        is_ours: says whether an existing folder is of that kind and may be replaced.

    Raises:
        BadInputError: `out` exists and is something else, or its parent cannot be written.
        RRTEdgeError: the disk is full.
    """
    check_replaceable(out, kind, is_ours)
    out = out.resolve()
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove(partial)  # what an interrupted run left
        partial.mkdir()
        yield partial
        _swap(partial, out)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, Exception) and (translated := _disk_error(error, out)):
            raise translated from error
        raise


@contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Yield a place beside `out` to write; the file there takes the place of `out` when the block ends well.

    Raises:
        BadInputError: it cannot be written.
        RRTEdgeError: the disk is full.
    """
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.is_dir():
            raise BadInputError(f"{out}: is a folder; name a file")
        yield partial
        partial.replace(out)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, Exception) and (translated := _disk_error(error, out)):
            raise translated from error
        raise


def check_replaceable(out: Path, kind: str, is_ours: Callable[[Path], bool]) -> None:
    """Raise `BadInputError` where `out` exists and is not a folder of ours that may be replaced."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not is_ours(out)):
        raise BadInputError(f"{out}: exists and is not a {kind}; choose another name or remove it")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def _swap(partial: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    _remove(old)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    _remove(old)


def _disk_error(error: Exception, out: Path) -> RRTEdgeError | None:
    """Our error for a full disk or a place that cannot be written; safetensors reports both as text."""
    code = error.errno if isinstance(error, OSError) else None
    text = str(error)
    if code in (errno.ENOSPC, errno.EDQUOT) or "os error 28" in text:
        return RRTEdgeError(f"{out}: the disk is full; nothing was left behind, free some space and run again")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT) or any(
        f"os error {number}" in text for number in (2, 13)
    ):
        return BadInputError(f"{out}: cannot be written ({text}); choose another place")
    return None


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
    return digest.hexdigest()
