"""The HTTP application: its doors, health, metrics, and the page of the browser chat."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server import ollama
from rrt_edge.runtime.server.answering import Answering
from rrt_edge.runtime.server.answers import CHAT, COMPLETION
from rrt_edge.runtime.server.api_error import ApiError, api_error, is_cancelled
from rrt_edge.runtime.server.aside import Aside
from rrt_edge.runtime.server.door import Door
from rrt_edge.runtime.server.guards import guards
from rrt_edge.runtime.server.metrics import Metrics
from rrt_edge.runtime.server.ollama import OLLAMA_CHAT, OLLAMA_GENERATE
from rrt_edge.runtime.server.protocol import read_json
from rrt_edge.runtime.server.responses import RESPONSE
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.server.shelf import ManyBundles, OneBundle, Shelf
from rrt_edge.runtime.server.tokenizing import detokenize, tokenize
from rrt_edge.runtime.system.children import can_start

MOST_SHOWN = 200  # characters of a path that an error repeats
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = ("/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/responses")  # that clients look for elsewhere
OPEN_PATHS = ("/health", "/")  # without the API key
Told = Callable[[ApiError], dict[str, Any]]  # an error in the form of an API
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def openai_error(error: ApiError) -> dict[str, Any]:
    return error.body


def create_app(model: Model | ManyBundles, options: ServerOptions) -> Starlette:
    """The application for a bundle, or for several, for any ASGI server; its engines start and end with it.

    Raises:
        BadInputError: an option does not go with the bundle, or this program cannot start the processes in which
            templates and grammars of strangers are bounded.
    """
    if not can_start():
        raise BadInputError(
            "the server works on templates and grammars in processes of its own, which a frozen program, or one that "
            "embeds Python, cannot start; run it with a Python of its own"
        )
    if isinstance(model, Model):
        model.policy(options.exit_policy)
    return _Application(OneBundle(model, options) if isinstance(model, Model) else model, options).app


class _Application:
    def __init__(self, shelf: Shelf, options: ServerOptions) -> None:
        self.shelf, self.options = shelf, options
        self.aside = Aside()
        self.metrics = Metrics(
            lambda: sum(len(served.engine.waiting) for served in shelf.loaded()),
            lambda: sum(len(served.engine.running) for served in shelf.loaded()),
        )
        self.answering = Answering(shelf, self.aside, self.metrics, options.most_bytes)
        routes = [
            Route("/health", self._guarded(self.health)),
            Route("/metrics", self._guarded(self.show_metrics)),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/models/{name:path}", self._guarded(self.one_model)),
            self._door("/v1/chat/completions", CHAT),
            self._door("/v1/completions", COMPLETION),
            self._door("/v1/responses", RESPONSE),
            self._tokens("/tokenize", tokenize),
            self._tokens("/detokenize", detokenize),
            Route("/api/version", self._guarded(self.ollama_version, ollama.told)),
            Route("/api/tags", self._guarded(self.ollama_tags, ollama.told)),
            Route("/api/ps", self._guarded(self.ollama_running, ollama.told)),
            Route("/api/show", self._guarded(self.ollama_show, ollama.told), methods=["POST"]),
            self._door("/api/chat", OLLAMA_CHAT, ollama.told),
            self._door("/api/generate", OLLAMA_GENERATE, ollama.told),
        ]
        if options.page is not None:
            routes.append(Route("/", self._guarded(self.page)))
        middleware = guards(options.hosts, options.origins)
        handlers: dict[Any, Any] = {HTTPException: _no_such_page, Exception: _failed}
        self.app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.shelf.start()
        try:
            yield
        finally:
            self.aside.close()
            await self.shelf.stop()

    def _door(self, path: str, door: Door, told: Told = openai_error) -> Route:
        async def answer(request: Request) -> Response:
            return await self.answering.answer(request, door)

        return Route(path, self._guarded(answer, told), methods=["POST"])

    async def _json(self, request: Request) -> Any:
        return await self.aside.run(read_json, await self.answering.body(request))

    def _tokens(self, path: str, told: Callable[[Any, Model], dict[str, Any]]) -> Route:
        async def answer(request: Request) -> Response:
            body = await self._json(request)
            async with self.shelf.using(body.get("model") if isinstance(body, dict) else None) as served:
                return JSONResponse(await self.aside.run(told, body, served.model))

        return Route(path, self._guarded(answer), methods=["POST"])

    def _guarded(self, handler: Handler, told: Told = openai_error) -> Handler:
        """Wrap a handler: the API key is checked, errors are told in the API's form, and requests are counted."""

        async def guarded(request: Request) -> Response:
            path = request.scope["route"].path
            try:
                self._check_key(request)
                response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=499)
            except BaseException as error:  # a panic of a library in Rust is no `Exception`
                if is_cancelled(error):
                    raise
                failure = api_error(error)
                response = JSONResponse(told(failure), failure.status, failure.headers)
            self.metrics.answered(path, response.status_code)
            return response

        return guarded

    def _check_key(self, request: Request) -> None:
        key = self.options.api_key
        if key is None or request.url.path in OPEN_PATHS:
            return
        scheme, _, sent = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent.strip().encode(), key.encode()):
            headers = {"WWW-Authenticate": "Bearer"}
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key", headers=headers)

    async def health(self, request: Request) -> Response:
        for complaint in filter(None, (served.complaint for served in self.shelf.loaded())):
            return JSONResponse({"status": "failed", "message": complaint}, 503)
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        assert self.options.page is not None
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(self.options.page.read_text("utf-8"), headers=headers)

    async def models(self, request: Request) -> Response:
        listed = await self.aside.run(self.shelf.listed)
        return JSONResponse({"object": "list", "data": [one.about() for one in listed]})

    async def one_model(self, request: Request) -> Response:
        return JSONResponse((await self.aside.run(self.shelf.one, request.path_params["name"])).about())

    async def ollama_version(self, request: Request) -> Response:
        return JSONResponse({"version": ollama.VERSION})

    async def ollama_tags(self, request: Request) -> Response:
        return JSONResponse({"models": list(map(ollama.tag, await self.aside.run(self.shelf.listed)))})

    async def ollama_running(self, request: Request) -> Response:
        loaded = [one for one in await self.aside.run(self.shelf.listed) if one.served is not None]
        return JSONResponse({"models": list(map(ollama.running, loaded))})

    async def ollama_show(self, request: Request) -> Response:
        body = await self._json(request)
        name = (body.get("model") or body.get("name")) if isinstance(body, dict) else None
        return JSONResponse(ollama.show(await self.aside.run(self.shelf.one, name)))


def _as_response(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


async def _no_such_page(request: Request, error: HTTPException) -> Response:
    path = request.url.path.rstrip("/")
    message = f"{request.method} {path[:MOST_SHOWN]}: {error.detail}"
    meant = next((page for page in PAGES if path.endswith(page.removeprefix("/v1")) and path != page), None)
    if error.status_code == 404 and meant is not None:
        base = f"{request.url.scheme}://{request.url.netloc}/v1"
        message = f"{message}; it is at {meant} here: give clients {base} as the base URL"
    return _as_response(ApiError(error.status_code, message, headers=error.headers))


async def _failed(request: Request, error: Exception) -> Response:
    return _as_response(api_error(error))
