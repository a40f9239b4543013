"""The proofreader's bundle that ships: its size, its papers, and what it makes of some texts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

SAMPLE = ROOT / "samples" / "proofread"
BUNDLE = SAMPLE / "bundle"
MOST_BYTES = 60_000_000
MENDED = {
    "I recieved you're letter, but they dont want to come.": "I received your letter, but they don't want to come.",
    "The the meeting is at nine.": "The meeting is at nine.",
    "He said that he will came tomorrow.": "He said that he will come tomorrow.",
}
RIGHT = ["The meeting starts at nine.", "We moved the sofa next to the window.", "Fatima and Bogdan called on Friday."]


@pytest.fixture(scope="module")
def shipped(package: ModuleType) -> Iterator[Any]:
    with package.Proofreader.load() as proofreader:
        yield proofreader


def test_it_is_small_and_whole() -> None:
    files = [path for path in BUNDLE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    listed = json.loads((BUNDLE / "manifest.json").read_text("utf-8"))["files"]
    assert {path.name for path in files} == {*listed, "manifest.json", "README.md", "LICENSE", "NOTICE"}


def test_its_papers_are_there() -> None:
    assert (BUNDLE / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    notice = (BUNDLE / "NOTICE").read_text("utf-8")
    assert "SmolLM2-135M-Instruct" in notice and "Changes:" in notice
    _, head, card = (BUNDLE / "README.md").read_text("utf-8").split("---\n", 2)
    fields = yaml.safe_load(head)
    assert (fields["license"], fields["language"]) == ("apache-2.0", "en")
    size = sum(path.stat().st_size for path in BUNDLE.rglob("*") if path.is_file())
    assert f"{size / 1e6:.1f} MB" in card and "TODO" not in card


def test_it_mends_what_is_wrong_and_leaves_what_is_right(shipped: Any) -> None:
    for text, right in MENDED.items():
        assert shipped.correct(text).text == right
    for text in RIGHT:
        assert shipped.correct(text).text == text


def test_it_has_operating_points_of_which_the_faster_leave_earlier(package: ModuleType, shipped: Any) -> None:
    depths = {}
    for point in ("fast", "balanced", "faithful", "full"):
        corrected = package.Proofreader(shipped.model, point).correct(" ".join([*MENDED, *RIGHT]))
        depths[point] = corrected.depth
    assert 1 <= depths["fast"] <= depths["balanced"] <= depths["faithful"] <= depths["full"] == 2
    assert depths["balanced"] < 1.5


def test_the_sample_finds_it() -> None:
    text, right = next(iter(MENDED.items()))
    done = subprocess.run([sys.executable, "-P", str(SAMPLE)], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, right, "")


def test_the_lines_of_the_readme_do_what_they_say(tmp_path: Path) -> None:
    (code,) = re.findall(
        r"```py(?:thon)?\n(import proofread\n.*?)```", (SAMPLE / "README.md").read_text("utf-8"), re.DOTALL
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PYTHONPATH": str(SAMPLE), "RRT_EDGE_HOME": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2
