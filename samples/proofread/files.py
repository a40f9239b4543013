"""Texts in files: read whole, written whole or not at all."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


class UnusableError(Exception):
    """A file cannot be read or written; the message names it."""


@dataclass(frozen=True)
class Document:
    """A text and where it came from; `path` is `-` for standard input."""

    path: Path
    content: bytes
    text: str

    @property
    def name(self) -> str:
        return name(self.path)


def name(path: Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


def read(path: Path) -> Document:
    """A file's text: line ends and a byte order mark stay in it.

    Raises:
        UnusableError: it cannot be read, or is not UTF-8.
    """
    try:
        content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        return Document(path, content, content.decode("utf-8"))
    except OSError as error:
        raise UnusableError(f"{name(path)}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise UnusableError(f"{name(path)}: is not UTF-8 (byte 0x{byte:02x} at {error.start})") from error


def replace(document: Document, text: str) -> None:
    """Write a document anew: beside it first, then in its place, with its mode. A link stays a link.

    Raises:
        UnusableError: it cannot be written, or it was changed since it was read.
    """
    path = document.path.resolve()
    try:
        handle, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with open(handle, "wb") as file:  # noqa: PTH123  an open handle
                file.write(text.encode("utf-8"))
                file.flush()
                os.fsync(file.fileno())
            shutil.copymode(path, written)
            if path.read_bytes() != document.content:
                raise UnusableError(f"{document.name}: was changed meanwhile; it stays as it is")
            Path(written).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(written).unlink()
            raise
    except OSError as error:
        raise UnusableError(f"{document.name}: cannot be written ({error.strerror})") from error
