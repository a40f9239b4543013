"""`python samples/proofread serve`: a page for the browser, text left and corrected right, beside the chat.

It is the server of `rrt-edge serve --ui` with one endpoint more: POST /proofread takes {"text", "markdown"} and answers
with lines of JSON, {"done", "total"} as pieces are done and the correction at last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from threading import Event
from typing import Any

from command import add_bundle_options, complain, load

try:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
    from starlette.routing import Route

    from rrt_edge.runtime.server.app import PAGE_POLICY, create_app
    from rrt_edge.runtime.server.server_options import ServerOptions, hosts_for
except ImportError:
    sys.exit(complain(ModuleNotFoundError("the page needs a server: pip install 'rrt-edge[serve]'")))

from proofread import Corrected, Proofreader, Stopped

from rrt_edge.runtime import RRTEdgeError

PAGE = Path(__file__).with_name("page.html")
MOST_BYTES = 4 << 20  # of a request


class Endpoint:
    """Corrects texts, one after the other; one whose reader has gone stops within a step of the model."""

    def __init__(self, proofreader: Proofreader) -> None:
        self.proofreader, self.turn = proofreader, asyncio.Lock()

    async def answer(self, request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            return _refused(415, "the body must be application/json")  # which other sites' pages may not send unasked
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > MOST_BYTES:
                return _refused(413, f"the text is larger than {MOST_BYTES >> 20} MiB")
        try:
            payload = json.loads(body)
            text, is_markdown = payload["text"], payload.get("markdown", False)
            text.encode("utf-8")
        except (ValueError, KeyError, TypeError, AttributeError):
            return _refused(400, 'the body must be {"text": a text, "markdown": true or false}')
        lines = self._lines(request, text, bool(is_markdown))
        return StreamingResponse(lines, media_type="application/x-ndjson", headers={"Cache-Control": "no-store"})

    async def _lines(self, request: Request, text: str, is_markdown: bool) -> AsyncIterator[str]:
        stop, events, loop = Event(), asyncio.Queue[dict[str, Any] | None](), asyncio.get_running_loop()

        def tell(event: dict[str, Any] | None) -> None:
            loop.call_soon_threadsafe(events.put_nowait, event)

        def correct() -> None:
            try:
                corrected = self.proofreader.correct(
                    text,
                    is_markdown=is_markdown,
                    is_stopped=stop.is_set,
                    progress=lambda done, total: tell({"done": done, "total": total}),
                )
                tell(_record(corrected, self.proofreader.model.loops))
            except Stopped:
                pass
            except RRTEdgeError as error:
                tell({"error": str(error)})
            finally:
                tell(None)

        gone = asyncio.create_task(_when_gone(request, stop.set))
        try:
            async with self.turn:
                running = asyncio.create_task(asyncio.to_thread(correct))
                while (event := await events.get()) is not None:
                    yield json.dumps(event) + "\n"
                await running
        finally:
            stop.set()
            gone.cancel()


def _record(corrected: Corrected, loops: int) -> dict[str, Any]:
    lines = [(corrected.original.count("\n", 0, left.start) + 1, left.reason) for left in corrected.left]
    return {
        "segments": [(part.kind, part.text, part.depth) for part in corrected.segments()],
        "left": lines,
        "edits": len(corrected.edits),
        "depth": round(corrected.depth, 4),
        "loops": loops,
    }


def _refused(status: int, message: str) -> Response:
    return JSONResponse({"error": message}, status)


async def _when_gone(request: Request, act: Callable[[], None]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    act()


def make_app(proofreader: Proofreader, name: str, host: str = "127.0.0.1") -> Any:
    """The application: the page at /, the chat at /chat, and what `rrt-edge serve` has."""
    app = create_app(proofreader.model, ServerOptions(name=name, hosts=tuple(hosts_for(host)), page=PAGE))

    async def chat(_: Request) -> Response:
        page = (files("rrt_edge.web_chat") / "index.html").read_text("utf-8")
        return HTMLResponse(page, headers={"Content-Security-Policy": PAGE_POLICY})

    app.router.routes += [
        Route("/proofread", Endpoint(proofreader).answer, methods=["POST"]),
        Route("/chat", chat),
    ]
    return app


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python samples/proofread serve", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; by default this machine's own")
    parser.add_argument("--port", type=int, default=8080)
    add_bundle_options(parser)
    options = parser.parse_args(arguments)
    try:
        with load(options) as proofreader:
            name = Path(options.bundle or "proofread").resolve().name
            config = uvicorn.Config(
                make_app(proofreader, name, options.host), options.host, options.port, log_level="warning"
            )
            server = uvicorn.Server(config)
            sys.stderr.write(f"proofreading at http://{options.host}:{options.port}/ (Ctrl-C ends)\n")
            with suppress(KeyboardInterrupt):  # uvicorn has ended in order by then
                server.run()
    except RRTEdgeError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
