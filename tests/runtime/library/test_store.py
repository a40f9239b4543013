"""Installed bundles: what is found, listed, pulled and removed; nothing half pulled, nothing outside their folder."""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import platformdirs
import pytest

from rrt_edge.runtime import BadInputError, BundleError, Model, RRTEdgeError
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.library import download as downloading
from rrt_edge.runtime.library.store import (
    bundles_folder,
    downloads_folder,
    find_bundle,
    home,
    installed,
    installed_names,
    pull,
    remove,
)  # fmt: skip
from tests.runtime.library.homes import left_behind

pytestmark = pytest.mark.usefixtures("own_home")


class Server(ThreadingHTTPServer):
    """Serves one body at every path, going on at a Range; `cuts` says after how many bytes each answer breaks off."""

    body = b""
    ranges = True
    answers: tuple[int, ...] = ()  # statuses in the place of the first answers
    location = ""  # for a redirect

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts: list[int] = []
        self.asked: list[str | None] = []  # the Range of each request

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.answers:
            status, server.answers = server.answers[0], server.answers[1:]
            self.send_response(status)
            if server.location:
                self.send_header("Location", server.location)
            return self.end_headers()
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0  # type: ignore[index]
        if start and start >= len(server.body):
            self.send_response(416)
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.body) - 1}/{len(server.body)}")
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = start + server.cuts.pop(0) if server.cuts else len(server.body)
        self.wfile.write(server.body[start:end])
        return None


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def zipped(folder: Path, inside: str = "") -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, inside + path.name)
    return held.getvalue()


def tarred(folder: Path, inside: str = "bundle") -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:gz") as archive:
        archive.add(folder, inside)
    return held.getvalue()


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def changed(bundle: Path, target: Path) -> Path:
    """A copy in which a byte of the weights is another."""
    shutil.copytree(bundle, target)
    weights = bytearray((target / "model.onnx.data").read_bytes())
    weights[100] ^= 1
    (target / "model.onnx.data").write_bytes(weights)
    return target


def test_bundles_are_kept_among_the_users_data_or_where_the_environment_says(
    own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundles_folder() == own_home / "bundles" and downloads_folder() == own_home / "downloads"
    monkeypatch.delenv("RRT_EDGE_HOME")
    assert home() == platformdirs.user_data_path("rrt-edge")


@pytest.mark.slow
def test_a_pulled_folder_runs_by_its_short_name(bundle: Path, tmp_path: Path) -> None:
    messy = Path(shutil.copytree(bundle, tmp_path / "messy"))
    (messy / "notes.txt").write_text("not the bundle's")
    seen: list[tuple[int, int, str]] = []
    one = pull(str(messy), progress=lambda *told: seen.append(told))
    assert one.name == "messy" and one.problem is None and one.folder == bundles_folder() / "messy"
    manifest = Manifest.read(bundle)
    assert {path.name for path in one.folder.iterdir()} == {"manifest.json", *manifest.files}
    copied = [told for told in seen if told[2] == "copying"]
    total = sum(file.bytes for file in manifest.files.values())
    assert copied[-1][:2] == (total, total) and [told[0] for told in copied] == sorted(told[0] for told in copied)
    with Model.load(find_bundle("messy")) as ours, Model.load(bundle) as theirs:
        assert ours.generate([20, 30]).text == theirs.generate([20, 30]).text
    assert left_behind() == []


def test_a_damaged_bundle_never_appears(bundle: Path, tmp_path: Path, server: Server) -> None:
    damaged = changed(bundle, tmp_path / "damaged")
    with pytest.raises(BundleError, match=re.escape(f"{damaged / 'model.onnx.data'}: its SHA-256 is not")):
        pull(str(damaged))
    server.body = zipped(damaged)
    with pytest.raises(BundleError, match=re.escape(f"{server.address}/b.zip/model.onnx.data: its SHA-256 is not")):
        pull(f"{server.address}/b.zip", sha256=digest(server.body))
    (damaged / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer.json: missing"):
        pull(str(damaged))
    with pytest.raises(BundleError, match=r"holds no manifest.json"):
        pull(str(tmp_path))
    assert installed() == [] and left_behind() == []


def test_a_name_is_replaced_only_by_force(bundle: Path, make_bundle: Callable[..., Path], tmp_path: Path) -> None:
    other = make_bundle(loops=2)
    pull(str(bundle), "mine")
    with pytest.raises(BadInputError, match="mine: installed already"):
        pull(str(other), "mine")
    assert [one.facts()["loops"] for one in installed()] == [3]
    with pytest.raises(BundleError):
        pull(str(changed(other, tmp_path / "damaged")), "mine", force=True)
    assert [one.facts()["loops"] for one in installed()] == [3]
    pull(str(other), "mine", force=True)
    assert [one.facts()["loops"] for one in installed()] == [2] and left_behind() == []


@pytest.mark.parametrize("name", ["a/b", "../b", ".b", "", "b.", "con", "NUL.x", "a b", "x" * 97])
def test_names_that_could_leave_the_folder_are_refused(bundle: Path, name: str) -> None:
    if name:  # without one, the source's is taken
        with pytest.raises(BadInputError, match="not a bundle's name"):
            pull(str(bundle), name)
    with pytest.raises(BadInputError, match="not a bundle's name"):
        remove(name)
    assert left_behind() == []


@pytest.mark.slow
@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_broken_connection_is_taken_up_where_it_broke(bundle: Path, server: Server, pack: Callable[..., Any]) -> None:
    server.body = pack(bundle)
    third = len(server.body) // 3
    server.cuts = [third, third]
    seen: list[tuple[int, int, str]] = []
    one = pull(f"{server.address}/x/demo.tar.gz", sha256=digest(server.body), progress=lambda *told: seen.append(told))
    assert one.name == "demo" and one.problem is None
    assert server.asked == [None, f"bytes={third}-", f"bytes={2 * third}-"]
    came = [told[:2] for told in seen if told[2] == "downloading"]
    assert came[-1] == (len(server.body), len(server.body)) and came == sorted(came)
    assert left_behind() == []


def test_the_next_pull_goes_on_with_what_an_interrupted_one_left(bundle: Path, server: Server) -> None:
    server.body = zipped(bundle)
    sha256, half = digest(server.body), len(server.body) // 2
    server.cuts = [half, 0, 0, 0]
    with pytest.raises(RRTEdgeError, match="the connection broke") as caught:
        pull(f"{server.address}/demo.zip", sha256=sha256)
    assert not isinstance(caught.value, BadInputError)
    assert left_behind() == [f"downloads/{sha256}.partial"] and installed() == []
    server.asked.clear()

    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    server.cuts = [10]
    with pytest.raises(KeyboardInterrupt):
        pull(f"{server.address}/demo.zip", sha256=sha256, progress=interrupt)
    assert left_behind() == [f"downloads/{sha256}.partial"] and installed() == []
    one = pull(f"{server.address}/another-name.zip", "demo", sha256="sha256:" + sha256.upper())
    assert server.asked == [f"bytes={half}-", f"bytes={half + 10}-"]
    assert one.problem is None and left_behind() == []


def test_an_interruption_while_unpacking_keeps_the_download_and_nothing_else(bundle: Path, server: Server) -> None:
    server.body = tarred(bundle)

    def interrupt(done: int, total: int, what: str) -> None:
        if what == "unpacking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(f"{server.address}/demo.tgz", sha256=digest(server.body), progress=interrupt)
    assert left_behind() == [f"downloads/{digest(server.body)}.partial"]
    server.asked.clear()
    pull(f"{server.address}/demo.tgz", sha256=digest(server.body))
    assert server.asked == [] and installed_names() == ["demo"] and left_behind() == []


def test_another_hash_than_asked_for_installs_nothing(bundle: Path, server: Server) -> None:
    server.body = zipped(bundle)
    with pytest.raises(BadInputError, match=f"its SHA-256 is {digest(server.body)}, not the {'0' * 64} asked for"):
        pull(f"{server.address}/demo.zip", sha256="0" * 64)
    archive = home().parent / "local.zip"
    archive.write_bytes(server.body)
    with pytest.raises(BadInputError, match="not the one asked for"):
        pull(str(archive), sha256="0" * 64)
    assert installed() == [] and left_behind() == [] and archive.read_bytes() == server.body


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [False, True])
def test_what_was_left_of_another_file_is_thrown_away(bundle: Path, server: Server, ranges: bool) -> None:
    """A server that starts anew instead of going on, and one whose file is shorter than what is held."""
    server.body, server.ranges = zipped(bundle), ranges
    downloads_folder().mkdir(parents=True)
    left = server.body[:99] if not ranges else server.body + b"more"
    (downloads_folder() / f"{digest(server.body)}.partial").write_bytes(left)
    pull(f"{server.address}/demo.zip", sha256=digest(server.body))
    assert server.asked == [f"bytes={len(left)}-", *([None] if ranges else [])]
    assert installed_names() == ["demo"] and left_behind() == []


def test_a_server_that_always_breaks_at_the_same_byte_is_given_up(bundle: Path, server: Server) -> None:
    server.body, server.ranges = zipped(bundle), False
    server.cuts = [1000] * 10
    with pytest.raises(RRTEdgeError, match="the connection broke"):
        pull(f"{server.address}/demo.zip", sha256=digest(server.body))
    assert len(server.asked) == 1 + downloading.TRIES


def test_what_the_server_answers_is_told(server: Server) -> None:
    for status, kind, told in ((404, BadInputError, "404 Not Found"), (503, RRTEdgeError, "503 .*; pull again later")):
        server.answers = (status,)
        with pytest.raises(kind, match=f"{server.address}/demo.zip: the server answered {told}"):
            pull(f"{server.address}/demo.zip?signature=secret", sha256="0" * 64)
    server.answers, server.location = (302,), "http://example.invalid/demo.zip"
    with pytest.raises(BadInputError, match=r"http://example.invalid/demo.zip: must be an https address"):
        pull(f"{server.address}/demo.zip", sha256="0" * 64)
    server.shutdown()
    server.server_close()
    with pytest.raises(RRTEdgeError, match="no connection"):
        pull(f"{server.address}/demo.zip", sha256="0" * 64)
    assert left_behind() == []


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("http://example.invalid/b.zip", {"sha256": "0" * 64}, "must be an https address"),
        ("ftp://example.invalid/b.zip", {"sha256": "0" * 64}, "must be an https address"),
        (
            "https://user:hunter2@example.invalid/b.zip",
            {"sha256": "0" * 64},
            "b.zip: a password",
        ),
        ("https://[/b.zip", {"sha256": "0" * 64, "name": "b"}, "not an address"),
        ("https://example.invalid/b.zip", {}, "needs --sha256"),
        ("https://example.invalid/b.zip", {"sha256": "12"}, "must be 64 hexadecimal digits"),
        ("https://example.invalid/b.zip", {"sha256": "0" * 64, "revision": "v1"}, "--revision is of"),
        ("https://example.invalid/", {"sha256": "0" * 64}, "not a bundle's name"),
        ("owner/name", {"sha256": "0" * 64}, "--sha256 is of an archive; owner/name is a repository"),
        ("nothing", {}, "no such folder or archive"),
        ("./owner/name", {}, "no such folder or archive"),
        ("x" * 5000, {}, "no such folder or archive"),
    ],
)
def test_sources_and_options_that_do_not_go_together(source: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message) as caught:
        pull(source, **options)
    assert "hunter2" not in str(caught.value) and left_behind() == []


def test_archives_on_disk_in_both_layouts(bundle: Path, tmp_path: Path) -> None:
    for name, body in {
        "flat.zip": zipped(bundle), "deep.zip": zipped(bundle, "folder/"), "flat.tar.gz": tarred(bundle, "."),
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(body)
        assert pull(str(tmp_path / name), name.replace(".", "-")).problem is None
        assert (tmp_path / name).read_bytes() == body
    assert installed_names() == ["deep-zip", "flat-tar-gz", "flat-zip"] and left_behind() == []


def test_a_folder_wins_over_a_name_and_errors_list_names_that_are_near(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BundleError, match="no such bundle folder, and no such bundle is installed; make one"):
        find_bundle("smollm")
    for name in ("smollm-2x", "gemma"):
        pull(str(bundle), name)
    assert find_bundle("gemma") == find_bundle(Path("gemma")) == bundles_folder() / "gemma"
    (tmp_path / "gemma").mkdir()
    assert find_bundle("gemma") == Path("gemma")
    assert find_bundle(bundle) == bundle
    with pytest.raises(BundleError, match=r"smollm: no such .* did you mean smollm-2x\?"):
        find_bundle("smollm")
    with pytest.raises(BundleError, match="installed: gemma, smollm-2x"):
        find_bundle("zzz")
    Path("work").mkdir()
    Path(shutil.copytree(bundle, "work/Bundle"))
    for wrong, right in (("work/bundel", "work/Bundle"), ("./work/bndle", "work/Bundle")):
        with pytest.raises(BundleError, match=rf"bundle folder; did you mean {Path(right)}\?".replace("\\", ".")):
            find_bundle(wrong)
    monkeypatch.chdir("work")
    with pytest.raises(BundleError, match=r"bundel: no such .*; did you mean Bundle\?"):
        find_bundle("bundel")
    monkeypatch.chdir(tmp_path)
    for path in ("nowhere/gemma", "../bundles/gemma", "x" * 5000):
        with pytest.raises(BundleError, match="no such bundle folder") as caught:
            find_bundle(path)
        assert len(str(caught.value)) < 120


def test_damaged_bundles_are_listed_with_what_is_wrong_and_can_be_removed(bundle: Path) -> None:
    for name in ("good", "cut", "empty"):
        pull(str(bundle), name)
    (bundles_folder() / "cut" / "model.onnx").write_bytes(b"cut")
    (bundles_folder() / "empty" / "manifest.json").unlink()
    (bundles_folder() / ".hidden").mkdir()
    problems = {one.name: one.problem for one in installed()}
    assert problems["good"] is None and list(problems) == ["cut", "empty", "good"]
    assert "model.onnx: 3 bytes, the manifest says" in str(problems["cut"])
    assert "holds no manifest.json" in str(problems["empty"])
    sizes = {one.name: one.bytes for one in installed()}
    assert sizes["good"] == sum(path.stat().st_size for path in bundle.iterdir())
    assert {name: remove(name) for name in ("cut", "empty", "good")} == sizes
    assert installed() == [] and [path.name for path in bundles_folder().iterdir()] == [".hidden"]
    with pytest.raises(BadInputError, match="good: no such bundle is installed"):
        remove("good")


def test_removing_a_link_leaves_what_it_points_to(bundle: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(bundle, tmp_path / "target"))
    bundles_folder().mkdir(parents=True)
    try:
        (bundles_folder() / "linked").symlink_to(target)
    except OSError:
        pytest.skip("links cannot be made here")
    with pytest.raises(BadInputError, match="linked: is a link"):
        pull(str(bundle), "linked", force=True)
    assert installed_names() == ["linked"] and remove("linked") == 0
    assert installed_names() == [] and Manifest.read(target) == Manifest.read(bundle)
