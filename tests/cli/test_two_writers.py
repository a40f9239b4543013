"""Two processes that write the same: one is told who writes it, or waits; what is there in the end is whole."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rrt_edge.runtime.bundle.manifest import Manifest
from tests.cli.test_library import PROGRAM, Shell
from tests.conftest import PREBUILT

pytestmark = pytest.mark.slow


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shutil.copytree(PREBUILT, tmp_path / "bundle")
    return Shell(tmp_path)


def at_once(shell: Shell, *commands: tuple[object, ...]) -> list[str]:
    """Run commands at the same time; what those that failed said."""
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, *map(str, arguments)],
            env=shell.environment,
            cwd=shell.folder,
            **pipes,
        )
        for arguments in commands
    ]
    said = [(process.communicate()[1], process.returncode) for process in processes]
    assert any(status == 0 for _, status in said), said
    errors = [text.splitlines()[-1] for text, status in said if status]
    assert all(re.search(r"process \d+ \(.*\) on .* is writing it", line) for line in errors), errors
    return errors


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("there", [False, True])
def test_two_exports_of_one_bundle_end_with_a_whole_one(shell: Shell, recursive: Path, there: bool) -> None:
    if there:
        shutil.copytree(PREBUILT, shell.folder / "out")
    at_once(shell, ("export", recursive, "out", "--bits", 8), ("export", recursive, "out", "--bits", 4))
    manifest = Manifest.read(shell.folder / "out")
    manifest.check_hashes(shell.folder / "out")
    assert manifest.quantization.bits in (4, 8) and names(shell.folder) == {"bundle", "out"}


def test_two_conversions_of_one_checkpoint_end_with_a_whole_one(shell: Shell, source: Path) -> None:
    at_once(shell, ("convert", source, "out", "--loops", 2), ("convert", source, "out", "--loops", 3))
    assert "model.safetensors" in names(shell.folder / "out") and names(shell.folder) == {"bundle", "out"}


def test_two_pulls_under_one_name_end_with_a_whole_bundle(shell: Shell) -> None:
    shell("pull", "bundle", "--name", "mine")
    at_once(shell, *[("pull", "bundle", "--name", "mine", "--force")] * 3)
    assert names(shell.home / "bundles") == {"mine"}
    Manifest.read(shell.home / "bundles" / "mine").check_hashes(shell.home / "bundles" / "mine")


def test_two_calibrations_keep_each_others_points(shell: Shell) -> None:
    data = shell.folder / "data.txt"
    data.write_text("The cat sees the hen.\n" * 40)
    points = [("calibrate", "bundle", "--data", data, "--name", name, "--agreement", 0.05) for name in ("one", "two")]
    assert at_once(shell, *points) == []
    assert set(Manifest.read(shell.folder / "bundle").gate.points) == {"one", "two"}


def test_two_loads_that_fill_one_weight_cache_share_it(shell: Shell) -> None:
    assert at_once(shell, *[("generate", "bundle", "Hi", "--max-tokens", 1, "--weight-cache", "cache")] * 3) == []
    assert len(names(shell.folder / "cache")) == 1
