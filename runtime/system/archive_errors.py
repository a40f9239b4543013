"""What Python's readers of .zip and .tar raise where an archive is damaged, or made to look so: more than they say."""

from __future__ import annotations

import lzma
import struct
import tarfile
import zipfile
import zlib

DAMAGED = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, OverflowError,
    NotImplementedError, RuntimeError,
)  # fmt: skip
