"""Bundles that are exported into the store: once, by one at a time, and never over somebody else's."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.library.exported import export_once, find_exported, names_exported_from
from rrt_edge.runtime.library.origin import FILE, Origin, origin_of
from rrt_edge.runtime.library.store import bundles_folder, fitting_name, installed_names, pull

ORIGIN = Origin("/models/tiny", "0" * 64, {"bits": 4})


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RRT_EDGE_HOME", str(tmp_path / "home"))


def other(**changes: object) -> Origin:
    return Origin(**{**vars(ORIGIN), **changes})  # type: ignore[arg-type]


def test_the_second_time_nothing_is_written(bundle: Path) -> None:
    folder = export_once(ORIGIN, "tiny", lambda out: shutil.copytree(bundle, out))
    assert {path.name for path in folder.iterdir()} == {path.name for path in bundle.iterdir()} | {FILE}
    again = other(source="/elsewhere")
    assert export_once(again, "other", lambda out: pytest.fail("written again")) == folder == find_exported(again)
    assert origin_of(folder) == ORIGIN and names_exported_from("/models/tiny") == ["tiny"]


def test_two_at_once_write_one_bundle(bundle: Path) -> None:
    begun, go_on, written = threading.Event(), threading.Event(), []

    def write(out: Path) -> None:
        written.append(out)
        begun.set()
        go_on.wait()
        shutil.copytree(bundle, out)

    folders: list[Path] = []
    threads = [threading.Thread(target=lambda: folders.append(export_once(ORIGIN, "tiny", write))) for _ in range(2)]
    threads[0].start()
    begun.wait()
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join()
    assert len(written) == 1 and folders == [bundles_folder() / "tiny"] * 2


@pytest.mark.parametrize(("changes", "names"), [
    ({"content": "1" * 64}, ["tiny"]),  # the same source, changed
    ({"content": "1" * 64, "source": "/others/tiny"}, ["tiny", "tiny-2"]),
    ({"options": {"bits": 8}}, ["tiny", "tiny-2"]),
])  # fmt: skip
def test_what_takes_the_place_of_what(changes: dict[str, object], names: list[str], bundle: Path) -> None:
    for origin in (ORIGIN, other(**changes)):
        export_once(origin, "tiny", lambda out: shutil.copytree(bundle, out))
    assert installed_names() == names
    assert find_exported(other(**changes)) == bundles_folder() / names[-1]


def test_a_bundle_that_was_pulled_says_nothing_of_its_origin(bundle: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(bundle, tmp_path / "copied"))
    ORIGIN.write(copied)
    pull(str(copied), "tiny")
    assert find_exported(ORIGIN) is None
    export_once(ORIGIN, "tiny", lambda out: shutil.copytree(bundle, out))
    assert installed_names() == ["tiny", "tiny-2"]


def test_errors_name_the_place_and_leave_nothing() -> None:
    def fail(out: Path) -> None:
        out.mkdir()
        raise RRTEdgeError(f"{out}: the disk is full")

    with pytest.raises(RRTEdgeError) as raised:
        export_once(ORIGIN, "tiny", fail)
    assert str(raised.value) == f"{bundles_folder() / 'tiny'}: the disk is full" and not bundles_folder().exists()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"source": 1, "content": "", "options": {}}', "\x00"])
def test_a_damaged_origin_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    assert origin_of(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a b/c", "a-b-c"),
        ("größe", "gr-e"),
        ("..x..", "x"),
        ("con", "model-con"),
        ("…", "model"),
        ("a" * 200, "a" * 64),
    ],
)
def test_any_text_fits(text: str, name: str) -> None:
    assert fitting_name(text) == name
