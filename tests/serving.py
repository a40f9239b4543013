"""`rrt-edge serve` in a process of its own, on a free port."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import threading
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
def serving(bundle: Path | str, *options: str, **environment: str) -> Iterator[Served]:
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


def answer(model: Any, messages: list[dict[str, str]], **sampling: object) -> str:
    """What a model says in Python, by its calibrated threshold, in as many tokens as a server's default."""
    from rrt_edge.runtime import Sampling

    said = model.chat(messages, Sampling(max_tokens=1024, **sampling), exit_policy="threshold")
    return "".join(token.text for token in said)


@dataclass(frozen=True)
class Here:
    """A server in a thread of this process, whose parts a test may change."""

    server: Any
    host: str
    port: int
    client: httpx.Client

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def post(self, body: dict[str, Any], path: str = "/v1/completions") -> httpx.Response:
        return self.client.post(path, json=body)

    @property
    def running(self) -> int:
        """Requests that the engine runs; asked of the server, so that it gets on meanwhile."""
        lines = self.client.get("/metrics").text.splitlines()
        return int(float(next(line for line in lines if line.startswith("rrt_edge_requests_running ")).split()[1]))


@contextmanager
def serving_here(model: Any, **options: Any) -> Iterator[Here]:
    """Serve a model from this process until the block ends."""
    from rrt_edge.runtime.server.server_options import ServerOptions
    from rrt_edge.runtime.server.serving import listen, make_server

    ready, bound = threading.Event(), listen("127.0.0.1", 0)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # what a client does not read is soon noticed
    server = make_server(model, ServerOptions(name="here", **options), ready.set)
    host, port = bound.getsockname()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])))
    thread.start()
    try:
        assert ready.wait(60)
        with httpx.Client(base_url=f"http://{host}:{port}", timeout=60) as client:
            yield Here(server, host, port, client)
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
