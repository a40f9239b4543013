"""Archives of bundles: none is trusted, nothing leaves the folder it is unpacked into."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rrt_edge.runtime import BadInputError
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
