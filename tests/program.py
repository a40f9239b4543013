"""`rrt-edge` in a process of its own, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def run(*arguments: object, given: str | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-c", "from rrt_edge.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        command, input=given or "", capture_output=True, text=True, encoding="utf-8", env=environment, cwd=cwd
    )


def refused(*arguments: object, status: int = 2, given: str | None = None) -> str:
    """Run a command that must fail with one line and no traceback, as text and as JSON; returns the line."""
    done = run(*arguments, given=given)
    assert done.returncode == status, done.stderr
    assert done.stdout == "" and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    if arguments[0] != "chat":
        as_json = run(*arguments, "--json", given=given)
        assert as_json.returncode == status and as_json.stdout == ""
        error = json.loads(as_json.stderr)["error"]
        assert set(error) == {"type", "message"} and f"error: {error['message']}\n" == done.stderr
    return done.stderr
