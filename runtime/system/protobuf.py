"""Messages of protobuf, field by field, of which nobody has to know all that they may hold."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import BinaryIO

VARINT, LENGTH = 0, 2  # kinds of fields: a number; bytes behind their length
_FIXED = {1: 8, 5: 4}  # bytes of the kinds that have always as many


def fields(file: BinaryIO) -> Iterator[tuple[int, int, int]]:
    """The fields of a message: which it is, its kind, and the number, or the length of the bytes that may be read next.

    Raises:
        ValueError, OverflowError: it is no such message; a length leads anywhere.
    """
    while (tag := _varint(file)) is not None:
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            yield number, kind, _varint(file) or 0
        elif kind == LENGTH:
            length = _varint(file) or 0
            end = file.tell() + length
            yield number, kind, length
            file.seek(end)
        elif kind in _FIXED:
            file.seek(_FIXED[kind], io.SEEK_CUR)
        else:
            raise ValueError(f"kind {kind}")


def strings(file: BinaryIO) -> dict[int, str]:
    """A message whose fields are texts, by the number of each."""
    return {number: file.read(length).decode() for number, kind, length in fields(file) if kind == LENGTH}


def _varint(file: BinaryIO) -> int | None:
    """A number in groups of seven bits, the lowest first; None at the end of the file."""
    number = shift = 0
    while byte := file.read(1):
        number |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return number
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
    return None
