"""device_graphs.zip: what it says of its graphs is of its type and bounded, and a damaged one is one sentence."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime import BundleError
from rrt_edge.runtime.bundle.device_graphs import read_archive
from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS
from tests.conftest import PREBUILT

ODD: dict[str, list[Any]] = {
    "version": [0, "1", None, [1] * 3000],
    "slots": [0, -1, "4", 4.5, True, None, 10**9],
    "turns": [-1, "1", 1.5, None],
    "windows": [None, [], [0], [-1], ["8"], [1.5], [True], "8", 8],
    "attention_scale": ["nan", "0.25", 0, -1, 1e300, True, None],
    "attention_softcap": ["inf", 0, -5, [1]],
    "overflows_float16": ["no", 0, None],
}


def write(folder: Path, method: int = zipfile.ZIP_DEFLATED, without: str = "", **about: Any) -> Path:
    with zipfile.ZipFile(PREBUILT / DEVICE_GRAPHS) as whole, zipfile.ZipFile(folder / DEVICE_GRAPHS, "w") as out:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "about.json":
                fields = {**json.loads(content), **about}
                content = json.dumps({name: value for name, value in fields.items() if name != without}).encode()
            out.writestr(name, content, method)
    return folder / DEVICE_GRAPHS


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in ODD.items() for value in values])
def test_what_it_says_of_another_type_or_size_is_named(tmp_path: Path, field: str, value: Any) -> None:
    write(tmp_path, **{field: value})
    with pytest.raises(BundleError, match=rf"device_graphs\.zip: {field} "):
        read_archive(tmp_path)


@pytest.mark.parametrize("field", ODD)
def test_a_field_that_is_missing_is_named(tmp_path: Path, field: str) -> None:
    write(tmp_path, without=field)
    with pytest.raises(BundleError, match=rf"device_graphs\.zip: {field} "):
        read_archive(tmp_path)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_another_compression_is_read(tmp_path: Path, method: int) -> None:
    write(tmp_path, method)
    assert read_archive(tmp_path) == read_archive(PREBUILT)


@pytest.mark.parametrize(
    ("at", "value"),
    [(8, 99), (6, 1), (8, 14), (8, 12), (10, 99), (8, 1), (34, 255)],
    ids=["no method", "encrypted", "lzma", "bzip2", "version", "flags", "attributes"],
)
def test_headers_that_say_something_else_are_one_sentence(tmp_path: Path, at: int, value: int) -> None:
    """In the header of every member and, two bytes on, in the table of contents."""
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", at), (b"PK\x01\x02", at + 2)):
        start = content.find(signature)
        while start >= 0 and start + offset < len(content):
            content[start + offset] = value
            start = content.find(signature, start + 4)
    path.write_bytes(content)
    try:
        read_archive(tmp_path)
    except BundleError as error:
        assert str(error).startswith(f"{path}: cannot be read (")
    else:
        assert at in (10, 34)  # numbers that nobody reads
