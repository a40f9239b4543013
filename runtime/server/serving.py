"""Run the application with uvicorn on a socket that is bound before the model is loaded."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.app import ServerOptions, create_app


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
    model: Model,
    options: ServerOptions,
    defaults: Sampling,
    bound: socket.socket,
    ready: Callable[[], None],
    ending: Callable[[], None],
) -> None:
    """Serve until interrupted or terminated; running replies end first, at a second interrupt at once.

    `ready` is called when the server answers, `ending` when it is told to end.
    """
    app = create_app(model, options, defaults)
    config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on", server_header=False)
    server = _AnnouncingServer(config, ready, ending)
    # uvicorn raises the signal again when it has shut down in order: by then it has been heeded.
    before = {kind: signal.signal(kind, lambda *_: None) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        asyncio.run(server.serve(sockets=[bound]))
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


class _AnnouncingServer(uvicorn.Server):
    """Says when it is ready, and when it ends because it was told to."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None], ending: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready, self._ending = ready, ending

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        again = self.should_exit
        super().handle_exit(sig, frame)  # first: a second signal may come while the rest runs
        if again:
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # replies that are broken off are no error
        else:
            self._ending()
