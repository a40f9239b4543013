"""What killed pulls and removals leave: told by `doctor` and `list`, and gone at the next pull."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from rrt_edge.cli import main
from rrt_edge.runtime import RRTEdgeError
from rrt_edge.runtime.library.store import bundles_folder, downloads_folder, installed_names, leftovers, pull, remove
from rrt_edge.runtime.system.files import scratch_folder, writing
from tests.conftest import PREBUILT
from tests.runtime.library.homes import left_behind

pytestmark = pytest.mark.usefixtures("own_home")


def litter() -> list[str]:
    """What a killed pull, one killed while it replaced a bundle, and a killed rm leave."""
    for folder in (
        downloads_folder() / "unpacked-k2j3h4",
        downloads_folder() / "unpacked-1234-0123abcd",
        bundles_folder() / ".demo.1234-0123abcd.partial",
        bundles_folder() / ".other.1234-0123abcd.gone",
    ):
        folder.mkdir(parents=True)
        (folder / "model.onnx.data").write_bytes(bytes(1_000_000))
    (bundles_folder() / ".other.lock").write_text("")
    return [path.name for path in leftovers()]


def test_leftovers_are_told_and_go_at_the_next_pull() -> None:
    names = litter()
    assert len(names) == 4
    listed = CliRunner().invoke(main, ["list"])
    assert "commands that were killed left 4.00 MB; the next rrt-edge pull deletes it" in listed.stderr
    assert json.loads(CliRunner().invoke(main, ["list", "--json"]).stdout)["leftover_bytes"] == 4_000_000
    doctor = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).stdout)
    assert doctor["bundles"]["leftover_bytes"] == 4_000_000 and doctor["bundles"]["unfinished_download_bytes"] == 0
    assert all(any(name in note for note in doctor["notes"]) for name in names)
    pull(str(PREBUILT), "mine")
    assert leftovers() == [] and left_behind() == [] and list(downloads_folder().iterdir()) == []
    assert "killed" not in CliRunner().invoke(main, ["list"]).stderr


def test_what_another_pull_is_using_stays() -> None:
    downloads_folder().mkdir(parents=True)
    with scratch_folder(downloads_folder(), "unpacked") as used:
        errors: list[Exception] = []

        def other() -> None:
            try:
                assert leftovers() == []
                pull(str(PREBUILT), "mine")
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert errors == [] and used.is_dir() and installed_names() == ["mine"]


def test_a_bundle_that_is_being_written_is_neither_pulled_nor_removed(tmp_path: Path) -> None:
    pull(str(PREBUILT), "mine")
    errors: list[str] = []

    def other() -> None:
        for attempt in (lambda: pull(str(PREBUILT), "mine", force=True), lambda: remove("mine")):
            try:
                attempt()
            except RRTEdgeError as error:
                errors.append(str(error))

    with writing(bundles_folder() / "mine"):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert len(errors) == 2 and all("is writing it" in error for error in errors)
    assert installed_names() == ["mine"]


def test_a_bundle_that_a_kill_left_aside_is_found_again() -> None:
    pull(str(PREBUILT), "mine")
    (bundles_folder() / "mine").rename(bundles_folder() / ".mine.1234-0123abcd.old")
    assert installed_names() == ["mine"]
    (bundles_folder() / "mine").rename(bundles_folder() / ".mine.1234-0123abcd.old")
    pull(str(PREBUILT), "mine", force=True)
    assert installed_names() == ["mine"] and left_behind() == []
