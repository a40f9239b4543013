"""Archives whose own tables and headers may be hostile: how large they are is known before they are read."""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from rrt_edge.runtime.system.archive_errors import DAMAGED

PIECE = 1 << 16  # bytes read of the archive at a time
MOST_HEADER = 1 << 20  # bytes of a header that holds a long name or further fields
MOST_DICTIONARY = 256 << 20  # bytes that .xz may take to unpack
_END, _LOCATOR, _END_64 = b"PK\x05\x06", b"PK\x06\x07", b"PK\x06\x06"
_LONG_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
)  # fmt: skip


class TooLarge(Exception):
    """An archive unpacks to more than it may."""


def table_bytes(archive: Path) -> int:
    """The bytes of a .zip's table of contents, as its end says and `zipfile` believes."""
    with archive.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - (1 << 16) - 128))
        tail = file.read()
    at = len(tail) - 22 if tail[-22:-18] == _END and tail[-2:] == b"\0\0" else tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        return 0  # `zipfile` finds no end either
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR:  # of an archive of more than 4 GB
        is_there = at >= 76 and tail[at - 76 : at - 72] == _END_64
        return int(struct.unpack_from("<Q", tail, at - 36)[0]) if is_there else 1 << 62
    return int(struct.unpack_from("<L", tail, at + 12)[0])


def is_tar(archive: Path) -> bool:
    """Whether a file is a .tar, compressed or not."""
    try:
        with open_tar(archive, 1 << 20) as tar:
            return tar.next() is not None
    except (TooLarge, OSError, *DAMAGED):
        return False


@contextmanager
def open_tar(archive: Path, limit: int) -> Iterator[tarfile.TarFile]:
    """A .tar, compressed or not, of which no more than `limit` bytes come, headers counted.

    Reading it raises `TooLarge` where there are more.
    """
    with (
        archive.open("rb") as file,
        tarfile.open(fileobj=_Unpacked(file, limit), mode="r|", tarinfo=_Header) as tar,
    ):
        yield tar


class _Header(tarfile.TarInfo):
    """A header; one that holds a long name or further fields is read as a whole, so its size is looked at first."""

    @classmethod
    def frombuf(cls, *arguments: Any, **options: Any) -> _Header:
        header = super().frombuf(*arguments, **options)
        if header.type in _LONG_HEADERS and header.size > MOST_HEADER:
            raise TooLarge
        return header


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Unpacked(io.RawIOBase):
    """The bytes of a file that may be compressed; never more than asked for are unpacked at a time."""

    def __init__(self, file: BinaryIO, limit: int) -> None:
        self._file, self._room, self._waiting = file, limit, b""
        magic = file.read(6)
        file.seek(0)
        self._decompressor: _Decompressor | None = None
        if magic[:2] == b"\x1f\x8b":
            self._decompressor = zlib.decompressobj(wbits=31)
        elif magic[:3] == b"BZh":
            self._decompressor = bz2.BZ2Decompressor()
        elif magic == b"\xfd7zXZ\x00":
            self._decompressor = lzma.LZMADecompressor(memlimit=MOST_DICTIONARY)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or fewer at the end.

        Raises:
            TooLarge: the limit is passed.
        """
        assert size >= 0
        pieces, missing = [], size
        while missing:
            piece = self._some(missing)
            if not piece:
                break
            missing -= len(piece)
            self._room -= len(piece)
            if self._room < 0:
                raise TooLarge
            pieces.append(piece)
        return b"".join(pieces)

    def _some(self, most: int) -> bytes:
        """Some of the next bytes; none at the end."""
        decompressor = self._decompressor
        if decompressor is None:
            return self._file.read(most)
        while not decompressor.eof:
            if not self._waiting and getattr(decompressor, "needs_input", True):
                self._waiting = self._file.read(PIECE)
            ended = not self._waiting and getattr(decompressor, "needs_input", True)
            piece = decompressor.decompress(self._waiting, most)
            self._waiting = getattr(decompressor, "unconsumed_tail", b"")
            if piece or ended:
                return piece
        return b""
