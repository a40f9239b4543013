"""`rrt-edge serve` in a process of its own, on a free port."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx


@dataclass(frozen=True)
class Served:
    """A running server; `url` ends without a slash."""

    process: subprocess.Popen[str]
    url: str
    client: httpx.Client

    def post(self, path: str, body: dict[str, Any], **given: Any) -> httpx.Response:
        return self.client.post(path, json=body, **given)

    def get(self, path: str, **given: Any) -> httpx.Response:
        return self.client.get(path, **given)

    def metric(self, name: str) -> float:
        """The sum of the lines of /metrics that begin so."""
        lines = [line for line in self.get("/metrics").text.splitlines() if line.startswith(name)]
        return sum(float(line.rpartition(" ")[2]) for line in lines)


@contextmanager
def serving(bundle: Path, *options: str, **environment: str) -> Iterator[Served]:
    """Serve a bundle until the block ends."""
    command = [sys.executable, "-P", "-c", "from rrt_edge.cli import main; main()", "serve", str(bundle)]
    with subprocess.Popen(
        [*command, "--port", "0", "--threads", "1", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            assert "serving at " in line, process.stderr.read()
            url = line.partition("serving at ")[2].split("/v1")[0]
            with httpx.Client(base_url=url, timeout=300) as client:
                yield Served(process, url, client)
        finally:
            process.kill()
