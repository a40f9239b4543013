"""Unpack a bundle's archive without trusting it: plain files only, inside the folder, no more than a bundle can be.

Every entry counts, and every part is bounded before it is read: an archive's own tables and headers too.
"""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from rrt_edge.runtime.bundle.manifest import FILE, LONGEST_NAME
from rrt_edge.runtime.errors import BadInputError, in_words, one_line
from rrt_edge.runtime.library.bounded_archives import TooLarge, is_tar, open_tar, table_bytes
from rrt_edge.runtime.system.archive_errors import DAMAGED
from rrt_edge.runtime.system.files import CHUNK
from rrt_edge.runtime.system.options import shown as quoted
from rrt_edge.runtime.system.progress import Progress

T = TypeVar("T")
MOST_FILES = 1000  # folders counted
MOST_TABLE = 1 << 20  # bytes of a .zip's table of contents, and of a header in a .tar
LONGEST_PATH = 1000  # characters
LARGEST = 64 << 30  # bytes unpacked
EXPANSION = 20  # weights hardly compress, so an archive that grows more than so many times ...
SPARE = 64 << 20  # ... and by these bytes is no bundle's


def unpack(archive: Path, folder: Path, shown: str, progress: Progress | None = None) -> Path:
    """Unpack a .zip or a (compressed) .tar.

    Args:
        archive: what to read; its contents decide what it is, not its name.
        folder: an empty folder to unpack into.
        shown: what messages call the archive.

    Returns:
        The folder that holds the bundle's manifest: `folder`, or the one folder in the archive.

    Raises:
        BadInputError: it is damaged, holds no bundle, leaves the folder, has links or devices, or is too large.
    """
    size = archive.stat().st_size
    limit = min(LARGEST, EXPANSION * size + SPARE)
    written = 0
    try:
        entries, count = _files(archive, shown, limit), 0
        while (entry := _read(next, entries, None)) is not None:
            path, file = entry
            count += 1
            if count > MOST_FILES:
                raise BadInputError(f"{shown}: has more than {MOST_FILES} files; this is no bundle's archive")
            target = folder / path
            if file is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with file, target.open("xb") as out:
                while piece := _read(file.read, CHUNK):
                    written += len(piece)
                    if written > limit:
                        raise TooLarge
                    out.write(piece)
                    if progress is not None:
                        progress(written, 0, "unpacking")
    except TooLarge as error:
        message = f"{shown}: unpacks to more than {limit} bytes; this is no bundle's archive"
        raise BadInputError(message) from error
    except DAMAGED as error:
        raise BadInputError(f"{shown}: damaged, or not an archive that can be read ({one_line(error)})") from error
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise BadInputError(f"{shown}: has two files of one name; this is no bundle's archive") from error
    return _holder(folder, shown)


def _read(function: Callable[..., T], *arguments: Any) -> T:
    """A part of an archive. What the system says then is of the archive, too, whose numbers lead anywhere."""
    try:
        return function(*arguments)
    except OSError as error:
        raise ValueError(in_words(error)) from error


def _files(archive: Path, shown: str, limit: int) -> Iterator[tuple[PurePosixPath, IO[bytes] | None]]:
    """The entries of an archive in its order; None for a folder."""
    if zipfile.is_zipfile(archive):
        return _of_zip(archive, shown)
    if is_tar(archive):
        return _of_tar(archive, shown, limit)
    raise BadInputError(f"{shown}: neither a .zip nor a .tar.gz; a bundle is published as one of them")


def _of_zip(archive: Path, shown: str) -> Iterator[tuple[PurePosixPath, IO[bytes] | None]]:
    if table_bytes(archive) > MOST_TABLE:
        raise BadInputError(f"{shown}: has more than {MOST_FILES} files; this is no bundle's archive")
    with zipfile.ZipFile(archive) as zipped:
        for info in zipped.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _not_plain(shown, info.filename)
            path = _inside(info.orig_filename, shown)
            yield path, None if info.is_dir() else zipped.open(info)


def _of_tar(archive: Path, shown: str, limit: int) -> Iterator[tuple[PurePosixPath, IO[bytes] | None]]:
    with open_tar(archive, limit) as tar:
        for member in tar:
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise _not_plain(shown, member.name)
            yield _inside(member.name, shown), tar.extractfile(member)


def _inside(name: str, shown: str) -> PurePosixPath:
    """The member's path, where it stays in the folder on every system."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or set(name) & set("\\:\0"):
        raise BadInputError(f"{shown}: {quoted(name)} would leave the bundle's folder; do not trust this archive")
    if not name or len(name) > LONGEST_PATH or any(len(os.fsencode(part)) > LONGEST_NAME for part in path.parts):
        raise BadInputError(f"{shown}: {quoted(name)} is no name of a file; this is no bundle's archive")
    return path


def _not_plain(shown: str, name: str) -> BadInputError:
    return BadInputError(f"{shown}: {quoted(name)} is a link or a device, not a file; do not trust this archive")


def _holder(folder: Path, shown: str) -> Path:
    folders = [path.parent for path in (folder / FILE, *sorted(folder.glob(f"*/{FILE}"))) if path.is_file()]
    if len(folders) == 1:
        return folders[0]
    if folders:
        raise BadInputError(f"{shown}: holds {len(folders)} bundles; unpack it and pull the folder that you want")
    raise BadInputError(f"{shown}: holds no {FILE} at its top or in its folder, so it is not a bundle's archive")
