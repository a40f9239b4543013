"""A few kills of each command that writes; `python benchmarks/kills.py` does it at every call (docs/reliability.md)."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

COMMANDS = ("export", "convert", "train", "calibrate", "pull", "rm", "session")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the kills need fork")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_killed_command_leaves_the_old_or_the_new_one_whole(command: str) -> None:
    pytest.importorskip("torch")
    arguments = [sys.executable, "-P", ROOT / "benchmarks" / "kills.py", "--json", "--only", command, "--most", "3"]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = json.loads(done.stdout)
    assert rows and all(row["kills"] >= 2 for row in rows)
    assert not any(row["lost"] or row["failed_again"] or row["left_behind"] for row in rows)
