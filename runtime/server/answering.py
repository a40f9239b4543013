"""A request through a door: its body is read, its replies are told as they come or at once; who leaves ends them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from rrt_edge.runtime.server.api_error import ApiError, named
from rrt_edge.runtime.server.aside import Aside, in_a_task, to_json
from rrt_edge.runtime.server.completing import Completing
from rrt_edge.runtime.server.door import Door
from rrt_edge.runtime.server.metrics import Metrics
from rrt_edge.runtime.server.protocol import read_json
from rrt_edge.runtime.server.served import Served
from rrt_edge.runtime.server.shelf import Shelf
from rrt_edge.runtime.server.worker import Busy
from rrt_edge.runtime.system.children import Asking


class Answering:
    """Answers requests.

    Args:
        shelf: the bundles that requests name.
        most_bytes: of a body.
    """

    def __init__(self, shelf: Shelf, aside: Aside, metrics: Metrics, most_bytes: int) -> None:
        self._shelf, self._aside, self._metrics, self._most_bytes = shelf, aside, metrics, most_bytes

    async def answer(self, request: Request, door: Door) -> Response:
        """
        Raises:
            ApiError, BadInputError: the request is wrong, or too many wait.
            ClientDisconnect: who asked has gone.
        """
        started = time.perf_counter()
        content = await self.body(request)
        asking = Asking()
        gone = asyncio.create_task(_disconnected(request))
        beginning = asyncio.create_task(self._begin(content, door, started, asking))
        try:
            await asyncio.wait((beginning, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            begun = beginning.result()
            if isinstance(begun, dict):
                return JSONResponse(begun)
            return _Told(begun) if begun.ask.stream else await self._whole(begun, gone)
        except (ClientDisconnect, asyncio.CancelledError):
            beginning.add_done_callback(_cancel_begun)
            raise
        finally:
            asking.leave()
            await _ended(gone, beginning)

    async def _begin(self, content: bytes, door: Door, started: float, asking: Asking) -> Completing | dict[str, Any]:
        """Read a request and queue its choices; what takes long is done beside the event loop."""
        with in_a_task():
            body = await self._aside.run(read_json, content)
            name = body.get("model") if isinstance(body, dict) else None
            if door.unloads(body):
                return door.at_once(body, await self._shelf.unload(name)) or {}
            async with self._shelf.using(name) as served:
                name = served.options.name if name is None else name
                at_once = door.at_once(body, name)
                if at_once is not None:
                    return at_once
                return await self._queue(body, name, served, door, started, asking)

    async def _queue(
        self, body: Any, name: str, served: Served, door: Door, started: float, asking: Asking
    ) -> Completing:
        """Queue the choices that a request asks a bundle for."""
        try:
            served.worker.check_room()
            ask = await self._aside.run(door.read, body, served.model, served.options)
            answers = door.answers(served.model, name, ask)
            with named(ask.names):
                async with served.grammars.tried(ask.sampling.grammar, asking):
                    return await Completing.begin(ask, answers, served.worker, self._metrics, self._aside, started)
        except Busy as error:
            raise served.busy() from error

    async def _whole(self, completing: Completing, gone: asyncio.Task[None]) -> Response:
        whole = asyncio.create_task(completing.whole())
        try:
            await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise ClientDisconnect
            return Response(await self._aside.run(to_json, whole.result()), media_type="application/json")
        finally:
            await _ended(whole)
            completing.cancel()

    async def body(self, request: Request) -> bytes:
        """A body that is to be JSON, which must say that it is: pages of other origins cannot without being asked.

        Raises:
            ApiError: it does not, or it is too large.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be application/json")
        taken = bytearray()
        async for piece in request.stream():
            taken += piece
            if len(taken) > self._most_bytes:
                raise ApiError(413, f"the body is larger than {self._most_bytes} bytes")
        return bytes(taken)


class _Told(StreamingResponse):
    """A reply as it comes; a client that goes away ends it, wherever it was."""

    def __init__(self, completing: Completing) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(completing.told(), media_type=completing.answers.media_type, headers=headers)
        self._completing = completing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._completing.cancel()


async def _disconnected(request: Request) -> None:
    """Ends when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _cancel_begun(beginning: asyncio.Task[Completing | dict[str, Any]]) -> None:
    """End what had begun when its client had gone."""
    if not beginning.cancelled() and beginning.exception() is None:
        begun = beginning.result()
        if isinstance(begun, Completing):
            begun.cancel()


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
