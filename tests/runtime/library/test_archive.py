"""Archives of bundles: none is trusted, nothing leaves the folder it is unpacked into."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from rrt_edge.runtime import BadInputError
from rrt_edge.runtime.library.bounded_archives import TooLarge, open_tar
from rrt_edge.runtime.library.store import (
    home,
    installed,
    pull,
)  # fmt: skip
from tests.runtime.library.homes import left_behind

pytestmark = pytest.mark.usefixtures("own_home")


def evil_zip(name: str, link: bool = False, body: bytes = b"evil") -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        info = zipfile.ZipInfo(name)
        info.compress_type = zipfile.ZIP_DEFLATED
        if link:
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, body)
    return held.getvalue()


def evil_tar(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", body: bytes = b"evil") -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        info.size = len(body) if kind == tarfile.REGTYPE else 0
        archive.addfile(info, io.BytesIO(body))
    return held.getvalue()


def many_folders() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for number in range(1001):
            zipped.writestr(f"folder{number}/", b"")
    return archive.getvalue()


def many_folders_of_tar() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:xz") as tar:
        for number in range(1001):
            info = tarfile.TarInfo(f"folder{number}")
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
    return archive.getvalue()


def long_table() -> bytes:
    """A table of contents of more than a megabyte, for twenty entries with long comments."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        for number in range(20):
            info = zipfile.ZipInfo(f"file{number}")
            info.comment = b"x" * 65_000
            zipped.writestr(info, b"")
    return archive.getvalue()


def hidden_end(table: bytes) -> bytes:
    """An archive whose end holds the signature of an end once more, in the number that says where the table starts."""
    return table[:-6] + b"PK\x05\x06" + table[-2:]


def long_header(kind: bytes, compression: str) -> bytes:
    """A header that says it goes on for a gigabyte, all of which is there."""
    archive = io.BytesIO()
    opened: IO[bytes] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}[compression](archive, "wb")
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = kind, 1 << 30
    with opened:
        opened.write(info.tobuf())
        for _ in range(64):
            opened.write(bytes(1 << 20))
    return archive.getvalue()


def started_elsewhere() -> bytes:
    """An archive whose end says that its table of contents starts where no file is."""
    content = bytearray(evil_zip("manifest.json"))
    content[-6:-2] = b"\xff\xff\xff\x7f"
    return bytes(content)


def damaged_bz2() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:bz2") as tar:
        info = tarfile.TarInfo("manifest.json")
        info.size = 3_000_000
        tar.addfile(info, io.BytesIO(np.random.default_rng(0).bytes(info.size)))
    content = bytearray(archive.getvalue())
    content[len(content) // 2] ^= 1
    return bytes(content)


def sparse() -> bytes:
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("model.onnx")
        info.pax_headers = {"GNU.sparse.size": str(1 << 40), "GNU.sparse.map": "0,4", "GNU.sparse.numblocks": "1"}
        info.size = 4
        tar.addfile(info, io.BytesIO(b"evil"))
    return archive.getvalue()


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["gz", "bz2", "xz"])
@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME], ids=["x", "g", "L"])
def test_a_long_header_is_refused_before_it_is_read(kind: bytes, compression: str, tmp_path: Path) -> None:
    path = tmp_path / "demo.tar"
    path.write_bytes(long_header(kind, compression))
    tracemalloc.start()
    with pytest.raises(BadInputError, match=r"neither a \.zip nor a \.tar\.gz|unpacks to more"):
        pull(str(path))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 12 << 20  # the table of .xz takes 8 MiB


@pytest.mark.parametrize("compression", ["", "gz", "bz2", "xz"])
def test_every_compression_is_read_to_its_end(compression: str, tmp_path: Path) -> None:
    path, body = tmp_path / "some.tar", np.random.default_rng(0).bytes(300_000) + bytes(300_000)
    with tarfile.open(path, f"w:{compression}") as tar:
        for name in ("a" * 150, "b"):
            info = tarfile.TarInfo(name)
            info.size = len(body)
            tar.addfile(info, io.BytesIO(body))
    with open_tar(path, 2_000_000) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None and file.read() == body
    with pytest.raises(TooLarge), open_tar(path, 700_000) as tar:
        for _ in tar:
            pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: evil_zip("../evil"), "would leave the bundle's folder"),
        (lambda: evil_zip("a/../../evil"), "would leave the bundle's folder"),
        (lambda: evil_zip("/tmp/evil"), "would leave the bundle's folder"),
        (lambda: evil_zip("..\\evil"), "would leave the bundle's folder"),
        (lambda: evil_zip("C:evil"), "would leave the bundle's folder"),
        (lambda: evil_zip("model.onnx", link=True, body=b"/etc/passwd"), "is a link or a device"),
        (lambda: evil_tar("../evil"), "would leave the bundle's folder"),
        (lambda: evil_tar("/tmp/evil"), "would leave the bundle's folder"),
        (lambda: evil_tar("model.onnx", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (lambda: evil_tar("model.onnx", tarfile.LNKTYPE, "/etc/passwd"), "is a link or a device"),
        (lambda: evil_tar("model.onnx", tarfile.CHRTYPE), "is a link or a device"),
        (lambda: evil_tar("model.onnx", tarfile.FIFOTYPE), "is a link or a device"),
        (lambda: evil_zip("model.onnx", body=bytes(80 << 20)), "unpacks to more than"),
        (lambda: evil_tar("model.onnx", body=bytes(80 << 20)), "unpacks to more than"),
        (many_folders, "has more than 1000 files"),
        (many_folders_of_tar, "has more than 1000 files"),
        (long_table, "has more than 1000 files"),
        (lambda: hidden_end(long_table()), "has more than 1000 files"),
        (sparse, "is a link or a device, not a file|neither"),
        (lambda: evil_zip("\0x"), "is no name of a file"),
        (lambda: evil_zip("n" * 300), "is no name of a file"),
        (lambda: evil_zip("é" * 200), "is no name of a file"),
        (lambda: evil_tar("d/" * 600 + "x"), "is no name of a file"),
        (started_elsewhere, "damaged, or not an archive that can be read"),
        (damaged_bz2, "damaged, or not an archive that can be read"),
        (lambda: evil_zip("readme.txt"), "holds no manifest.json"),
        (lambda: evil_zip("manifest.json")[:-5], "neither a .zip nor a .tar.gz"),
        (lambda: evil_tar("manifest.json", body=b"x" * 5000)[:40], "damaged|neither"),
        (lambda: b"<html>", "neither a .zip nor a .tar.gz"),
        (lambda: evil_zip("manifest.json"), "not valid JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "archive",
)
def test_archives_that_are_not_to_be_trusted(make: Callable[[], bytes], message: str, tmp_path: Path) -> None:
    path = tmp_path / "demo.zip"
    path.write_bytes(make())
    before = sorted(tmp_path.iterdir())
    with pytest.raises(BadInputError, match=message) as caught:
        pull(str(path))
    assert str(caught.value).startswith(str(path))
    assert left_behind() == [] and installed() == []
    assert sorted(tmp_path.iterdir()) == sorted({*before, home()}) and not Path("/tmp/evil").exists()


def test_archives_with_two_files_of_a_name_or_two_bundles(bundle: Path, tmp_path: Path) -> None:
    twice, two = tmp_path / "twice.tar", tmp_path / "two.zip"
    with tarfile.open(twice, "w") as archive:
        archive.add(bundle / "manifest.json", "manifest.json")
        archive.add(bundle / "tokenizer.json", "manifest.json")
    with zipfile.ZipFile(two, "w") as zip_file:
        for folder in "ab":
            zip_file.write(bundle / "manifest.json", f"{folder}/manifest.json")
    with pytest.raises(BadInputError, match="two files of one name"):
        pull(str(twice))
    with pytest.raises(BadInputError, match="holds 2 bundles"):
        pull(str(two))
    assert left_behind() == []
