"""Archives, changed: a bundle's graphs for devices, and bundles to be pulled."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrt_edge.runtime import BadInputError, BundleError
from rrt_edge.runtime.bundle.device_graphs import read_archive
from rrt_edge.runtime.bundle.manifest import Manifest, list_files
from rrt_edge.runtime.library.store import installed, pull, remove
from tests.conftest import PREBUILT
from tests.fuzz.budget import cases
from tests.fuzz.documents import Draw, changed_bytes, contents
from tests.fuzz.refusals import check_message
from tests.manifests import edit_manifest
from tests.runtime.library.homes import left_behind

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")  # a member twice is meant
Members = list[tuple[str, bytes]]
GRAPHS = PREBUILT / "device_graphs.zip"
METHODS = [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
PACKERS = {"": bytes, "gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}
NAMES = [
    "../x", "/x", "a/../../x", "C:x", "..\\x", "", ".", "..", "./x", "a//x", "x/", "a/manifest.json", "manifest.json",
    "n" * 300, "d/" * 200 + "x", "\u00e9" * 200, "a\nb", "\x1b[2Jx", "con", "model.onnx/x", "\u202ex", "x\0y",
]  # fmt: skip
KINDS = [
    tarfile.DIRTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.FIFOTYPE,
    tarfile.CHRTYPE,
    tarfile.CONTTYPE,
    b"S",
    b"Z",
]


def members_of(archive: Path) -> Members:
    with zipfile.ZipFile(archive) as zipped:
        return [(info.filename, zipped.read(info)) for info in zipped.infolist()]


@st.composite
def changed_members(draw: Draw, members: Members, document: str) -> Members:
    """Members of which some are gone, named otherwise, there twice or others; `document` is one that is JSON."""
    content_of, members = dict(members), list(members)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(members) - 1))
        name, content = members[at]
        match draw(st.sampled_from(["gone", "name", "twice", "content", "document", "document", "order"])):
            case "gone":
                del members[at]
            case "name":
                members[at] = draw(st.sampled_from(NAMES) | st.text(max_size=8)), content
            case "twice":
                members.append((name, content[: draw(st.integers(0, 100))]))
            case "content":
                members[at] = name, draw(changed_bytes(content[:500]))
            case "document":
                at = next((at for at, (name, _) in enumerate(members) if name == document), at)
                members[at] = document, draw(contents(json.loads(content_of[document])))
            case "order":
                members.reverse()
    return members or [("x", b"")]


@st.composite
def zipped(draw: Draw, members: Members) -> bytes:
    """A .zip; what its headers say of a member may be something else than what it is."""
    archive = io.BytesIO()
    odd = draw(st.integers(0, 4 * len(members)))
    with zipfile.ZipFile(archive, "w") as out:
        for at, (name, content) in enumerate(members):
            info = zipfile.ZipInfo(name or "x")
            info.filename = info.orig_filename = name.encode("utf-8", "replace").decode()
            info.compress_type = draw(st.sampled_from(METHODS)) if at == odd else zipfile.ZIP_DEFLATED
            if at == odd:
                kind = draw(st.sampled_from([0, stat.S_IFLNK, stat.S_IFREG, stat.S_IFIFO, stat.S_IFDIR]))
                info.external_attr = (kind | 0o644) << 16
                info.comment = draw(st.binary(max_size=20))
            out.writestr(info, content)
    content = archive.getvalue()
    return _with_other_headers(draw, content) if draw(st.booleans()) else content


def _with_other_headers(draw: Draw, content: bytes) -> bytes:
    """Another number in a header of a member, in the table of contents, or at the end."""
    signature = draw(st.sampled_from([b"PK\x03\x04", b"PK\x01\x02", b"PK\x01\x02", b"PK\x05\x06"]))
    starts = [at for at in range(len(content)) if content.startswith(signature, at)]
    at = draw(st.sampled_from(starts)) + draw(st.integers(0, 45))
    number = draw(st.sampled_from([0, 1, 8, 14, 99, 255, 0x80, 0x800, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF]))
    width = draw(st.sampled_from([1, 2, 4]))
    return content[:at] + (number & (1 << 8 * width) - 1).to_bytes(width, "little") + content[at + width :]


@st.composite
def tarred(draw: Draw, members: Members) -> bytes:
    """A .tar, compressed or not; a header may say something else than what there is."""
    archive = io.BytesIO()
    odd = draw(st.integers(0, 4 * len(members)))
    form = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=archive, mode="w", format=form, errors="replace") as out:
        for at, (name, content) in enumerate(members):
            short = name.encode("ascii", "replace").decode()[:90]  # as the oldest form has them
            info = tarfile.TarInfo(short if form == tarfile.USTAR_FORMAT else name)
            info.size = len(content)
            if at == odd:
                info.type = draw(st.sampled_from(KINDS))
                info.linkname = draw(st.sampled_from(["", "/etc/passwd", "../x", "manifest.json"]))
                if form == tarfile.PAX_FORMAT:
                    key = draw(
                        st.sampled_from(
                            ["size", "mtime", "path", "GNU.sparse.map", "GNU.sparse.size", "hdrcharset", "x"]
                        )
                    )
                    info.pax_headers = {
                        key: draw(st.sampled_from(["0", "-1", "1" * 30, "nan", "", "1,2", "BINARY", "/x"]))
                    }
            out.addfile(info, io.BytesIO(content))
    content = archive.getvalue()
    if draw(st.booleans()):
        start = draw(st.sampled_from(range(0, len(content) - 511, 512)))
        header = draw(changed_bytes(content[start : start + 512], 2))[:512].ljust(512, b"\0")
        if draw(st.booleans()):  # with the sum that a header has of itself
            total = sum(header[:148]) + 8 * 32 + sum(header[156:])
            header = header[:148] + f"{total:06o}\0 ".encode() + header[156:]
        content = content[:start] + header + content[start + 512 :]
    return PACKERS[draw(st.sampled_from(sorted(PACKERS)))](content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(PREBUILT, tmp_path_factory.mktemp("fuzz") / "bundle"))


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Members:
    """The members of a bundle's archive whose files have no more than a hundred bytes."""
    folder = Path(shutil.copytree(PREBUILT, tmp_path_factory.mktemp("light") / "bundle"))
    for path in folder.iterdir():
        if path.name != "manifest.json":
            path.write_bytes(path.read_bytes()[:100])
    edit_manifest(
        folder, lambda fields: fields.update(files={name: vars(file) for name, file in list_files(folder).items()})
    )
    return [(f"bundle/{path.name}", path.read_bytes()) for path in sorted(folder.iterdir())]


@pytest.fixture(scope="module")
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user without bundles."""
    home = tmp_path_factory.mktemp("home") / "home"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRT_EDGE_HOME", str(home))
        yield home


@cases(100)
@given(data=st.data())
def test_changed_graphs_for_devices_are_refused_or_what_they_say(folder: Path, data: st.DataObject) -> None:
    path, members = folder / GRAPHS.name, members_of(GRAPHS)
    whole = changed_members(members, "about.json").flatmap(zipped)
    path.write_bytes(
        data.draw(st.one_of(whole, whole, whole.flatmap(changed_bytes), changed_bytes(GRAPHS.read_bytes())))
    )
    try:
        archive = read_archive(folder)
    except BundleError as error:
        check_message(str(error), folder)
        return
    with zipfile.ZipFile(path) as same:
        about = json.loads(same.read("about.json"))
        assert archive.graphs == {name: same.read(f"{name}.onnx") for name in archive.graphs}
    says: dict[str, Any] = {
        "slots": archive.slots,
        "turns": archive.turns,
        "overflows_float16": archive.overflows_float16,
    }
    assert json.dumps(says) == json.dumps({name: about[name] for name in says})
    assert json.dumps([attention.window for attention in archive.attentions]) == json.dumps(about["windows"])
    for attention in archive.attentions:
        assert attention.scale == about["attention_scale"] and attention.softcap == about["attention_softcap"]
    assert archive.slots > 0 and archive.attentions


@cases(100)
@given(data=st.data())
def test_a_changed_archive_is_refused_or_its_bundle_installed(
    own_home: Path, light: Members, data: st.DataObject
) -> None:
    members = changed_members(light, "bundle/manifest.json")
    made = members.flatmap(lambda members: st.one_of(zipped(members), tarred(members)))
    archive = own_home.parent / "some.zip"
    archive.write_bytes(data.draw(st.one_of(made, made, made.flatmap(changed_bytes))))
    try:
        bundle = pull(str(archive))
    except BadInputError as error:
        check_message(str(error), archive)
        assert installed() == []
    else:
        manifest = Manifest.read(bundle.folder)
        manifest.check_hashes(bundle.folder)
        assert {path.name for path in bundle.folder.iterdir()} == {"manifest.json", *manifest.files}
        remove(bundle.name)
    assert left_behind() == []
    assert {path.name for path in own_home.parent.iterdir()} == {"home", "some.zip"}
