"""`rrt-edge serve` in a process of its own, on a free port."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Served:
    """A running server; `url` ends without a slash."""

    process: subprocess.Popen[str]
    url: str


@contextmanager
def serving(bundle: Path, *options: str) -> Iterator[Served]:
    """Serve a bundle until the block ends."""
    command = [sys.executable, "-P", "-c", "from rrt_edge.cli import main; main()", "serve", str(bundle)]
    with subprocess.Popen([*command, "--port", "0", *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert "serving at " in line, f"the server ended with {process.wait()}"
            yield Served(process, line.partition("serving at ")[2].split("/v1")[0])
        finally:
            process.kill()
