"""Run the application with uvicorn on a socket that is bound before the model is loaded."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from types import FrameType

import uvicorn
from uvicorn.server import HANDLED_SIGNALS

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.app import create_app
from rrt_edge.runtime.server.connections import Connection, Limits
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.server.shelf import ManyBundles

LAST_SECONDS = 3.0  # that an end without grace may take before the process exits with 1
SWITCHING = 0.001  # seconds after which a thread that reads a large request makes room for the others
BACKLOG = 128  # connections that the system, and one round of the event loop, take before they are counted
OFTEN = (
    "asyncio",
    "uvicorn.error",
    "rrt_edge.runtime.engine",
    "rrt_edge.runtime.server.worker",
    "rrt_edge.runtime.server.api_error",
)  # fmt: skip - loggers that a client could make write as often as it likes


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; port 0 takes a free one.

    Raises:
        BadInputError: the address cannot be had.
    """
    if not 0 <= port <= 65535:
        raise BadInputError(f"port {port}: must be from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise BadInputError(f"{host}:{port}: cannot listen there ({error.strerror}); choose another --port") from error
    return bound


def run(
    model: Model | ManyBundles,
    options: ServerOptions,
    bound: socket.socket,
    ready: Callable[[], None],
    ending: Callable[[], None],
) -> None:
    """Serve until interrupted or terminated; running replies have `options.grace` seconds to end, at a second signal
    none.

    `ready` is called when the server answers, `ending` when it is told to end.
    """
    server = make_server(model, options, ready, ending)
    often = OncePerSecond()
    for name in OFTEN:
        logging.getLogger(name).addFilter(often)
    # uvicorn raises the signal again when it has shut down in order: by then it has been heeded.
    before = {kind: signal.signal(kind, lambda *_: None) for kind in HANDLED_SIGNALS}
    switching = sys.getswitchinterval()
    sys.setswitchinterval(SWITCHING)
    gc.freeze()  # what is loaded stays: collecting what large requests leave behind must not look through it
    try:
        asyncio.run(server.serve(sockets=[bound]))
    finally:
        server.ended()
        gc.unfreeze()
        sys.setswitchinterval(switching)
        for kind, handler in before.items():
            signal.signal(kind, handler)
        for name in OFTEN:
            logging.getLogger(name).removeFilter(often)


def make_server(
    model: Model | ManyBundles,
    options: ServerOptions,
    ready: Callable[[], None] = lambda: None,
    ending: Callable[[], None] = lambda: None,
) -> Server:
    """The server that `run` runs."""
    limits, backlog = within_descriptors(options.limits)
    config = uvicorn.Config(
        create_app(model, options), http=Connection.limited(limits), ws="none", lifespan="on",
        log_level="warning", access_log=False, server_header=False, backlog=backlog,
    )  # fmt: skip
    return Server(config, options.grace, ready, ending)


def within_descriptors(limits: Limits) -> tuple[Limits, int]:
    """Limits, and a backlog, that leave the process half of the files it may open.

    One round of the event loop accepts a backlog of connections before the first of them is counted.
    """
    try:
        import resource
    except ModuleNotFoundError:  # Windows has no such limit
        return limits, BACKLOG
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return limits, BACKLOG
    return replace(limits, connections=max(1, min(limits.connections, files // 2))), max(8, min(BACKLOG, files // 8))


class OncePerSecond(logging.Filter):
    """Lets a line through once a second: clients must not fill the log."""

    def __init__(self) -> None:
        super().__init__()
        self._latest: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line = (record.name, str(record.msg).partition("\n")[0])
        now = time.monotonic()
        if now - self._latest.get(line, -1.0) < 1:
            return False
        self._latest[line] = now
        return True


class Server(uvicorn.Server):
    """Says when it is ready and when it ends because it was told to, and ends in a bounded time."""

    def __init__(
        self, config: uvicorn.Config, grace: float, ready: Callable[[], None], ending: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._grace, self._ready, self._ending = grace, ready, ending
        self._last_resort: threading.Timer | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        over = asyncio.get_running_loop().call_later(self._grace, self._break_off)
        try:
            await super().shutdown(sockets)
        finally:
            over.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit
        super().handle_exit(sig, frame)  # first: a second signal may come while the rest runs
        if again:
            self._break_off()
        else:
            self._exit_after(self._grace + LAST_SECONDS)
            self._ending()

    def ended(self) -> None:
        """The end came in order."""
        if self._last_resort is not None:
            self._last_resort.cancel()

    def _break_off(self) -> None:
        """End without waiting for replies."""
        self.force_exit = True
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # replies that are broken off are no error
        self._exit_after(LAST_SECONDS)

    def _exit_after(self, seconds: float) -> None:
        """Exit with 1 where something, a step that does not return, holds the process for so long from now on."""
        self.ended()
        self._last_resort = threading.Timer(seconds, _exit)
        self._last_resort.daemon = True
        self._last_resort.start()


def _exit() -> None:
    sys.stderr.write("the server did not end in time; it exits as it is\n")
    sys.stderr.flush()
    os._exit(1)
