"""The HTTP application: OpenAI's endpoints, health, metrics, and the page of the browser chat."""

from __future__ import annotations

import asyncio
import dataclasses
import hmac
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from rrt_edge.runtime.bundle.kv_rule_names import RunRuleName
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.engine import KV_BUDGET, Engine
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.answers import Answers
from rrt_edge.runtime.server.api_error import ApiError, api_error, is_cancelled, named
from rrt_edge.runtime.server.aside import Aside, Trials, in_a_task, to_json
from rrt_edge.runtime.server.completing import Completing
from rrt_edge.runtime.server.connections import Limits
from rrt_edge.runtime.server.guards import guards
from rrt_edge.runtime.server.metrics import Metrics
from rrt_edge.runtime.server.protocol import CHAT_TOKENS, read_chat, read_completion, read_json
from rrt_edge.runtime.server.worker import Busy, Worker
from rrt_edge.runtime.system.children import Asking, can_start
from rrt_edge.runtime.system.options import shown

MOST_GRACE = 86_400  # seconds
MOST_SHOWN = 200  # characters of a path that an error repeats
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
PAGES = ("/v1/chat/completions", "/v1/completions", "/v1/models")  # that clients look for elsewhere
OPEN_PATHS = ("/health", "/")  # without the API key
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


@dataclass(frozen=True)
class ServerOptions:
    """How a bundle is served.

    Attributes:
        name: what clients call the model.
        aliases: further names of it.
        any_model: whatever clients call the model, it is this one.
        exit_policy: of requests that name none; by default the bundle's own.
        api_key: what clients must send as a bearer token, if anything.
        origins: web pages of other origins that may call.
        hosts: names in the Host header that are answered; empty: any. Protects a server on this machine from web pages
            that rebind their name to it.
        most_waiting: requests that may wait; a further one gets status 429.
        most_tokens: of one reply.
        default_tokens: of a chat's reply, where neither the request nor the bundle says how many.
        most_bytes: of one request's body.
        kv_budget_bytes: keys and values that running requests may hold.
        kv_rule: where it is to be another than the one the model was loaded with.
        page: the file served at `/`, if any.
        limits: of connections.
        grace: seconds that running replies have to end when the server is told to.
    """

    name: str
    aliases: tuple[str, ...] = ()
    any_model: bool = False
    exit_policy: str | None = None
    api_key: str | None = None
    origins: tuple[str, ...] = ()
    hosts: tuple[str, ...] = LOCAL
    most_waiting: int = 64
    most_tokens: int = 4096
    default_tokens: int = CHAT_TOKENS
    most_bytes: int = 1 << 20
    kv_budget_bytes: int = KV_BUDGET
    kv_rule: RunRuleName | None = None
    page: Path | None = None
    limits: Limits = field(default_factory=Limits)
    grace: float = 30

    def __post_init__(self) -> None:
        for name in ("most_waiting", "most_tokens", "default_tokens", "most_bytes", "kv_budget_bytes"):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name.replace('_', '-')} {getattr(self, name)}: must be 1 or more")
        if not 0 <= self.grace <= MOST_GRACE:
            raise BadInputError(f"grace {self.grace}: must be from 0 to {MOST_GRACE} seconds")

    @property
    def names(self) -> tuple[str, ...]:
        """What clients may call the model, each once."""
        return tuple(dict.fromkeys((self.name, *self.aliases)))


def create_app(model: Model, options: ServerOptions) -> Starlette:
    """The application, for any ASGI server; its engine starts and ends with it.

    Raises:
        BadInputError: an option does not go with the bundle, or this program cannot start the processes in which
            templates and grammars of strangers are bounded.
    """
    if not can_start():
        raise BadInputError(
            "the server works on templates and grammars in processes of its own, which a frozen program, or one that "
            "embeds Python, cannot start; run it with a Python of its own"
        )
    model.policy(options.exit_policy)
    return _Application(model, options).app


class _Application:
    def __init__(self, model: Model, options: ServerOptions) -> None:
        self.model, self.options = model, options
        engine = Engine(model, kv_rule=options.kv_rule, kv_budget_bytes=options.kv_budget_bytes)
        self.engine = engine
        self.worker: Worker | None = None
        self.aside = Aside()
        self.grammars = Trials(model, options.most_waiting)
        self.metrics = Metrics(lambda: len(engine.waiting), lambda: len(engine.running))
        self.created = int(time.time())
        routes = [
            Route("/health", self._guarded(self.health)),
            Route("/metrics", self._guarded(self.show_metrics)),
            Route("/v1/models", self._guarded(self.models)),
            Route("/v1/models/{name:path}", self._guarded(self.one_model)),
            Route("/v1/chat/completions", self._guarded(self.chat), methods=["POST"]),
            Route("/v1/completions", self._guarded(self.completion), methods=["POST"]),
        ]
        if options.page is not None:
            routes.append(Route("/", self._guarded(self.page)))
        middleware = guards(options.hosts, options.origins)
        handlers: dict[Any, Any] = {HTTPException: _no_such_page, Exception: _failed}
        self.app = Starlette(routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.worker = Worker(self.engine, self.options.most_waiting)
        try:
            yield
        finally:
            self.grammars.close()
            self.aside.close()
            await asyncio.to_thread(self.worker.stop)

    def _guarded(self, handler: Handler) -> Handler:
        """Wrap a handler: the API key is checked, errors are told in the API's form, and requests are counted."""

        async def guarded(request: Request) -> Response:
            path = request.scope["route"].path
            try:
                self._check_key(request)
                response = await handler(request)
            except ClientDisconnect:
                response = Response(status_code=499)
            except Busy:
                response = _as_response(self._busy())
            except BaseException as error:  # a panic of a library in Rust is no `Exception`
                if is_cancelled(error):
                    raise
                response = _as_response(api_error(error))
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

    def _busy(self) -> ApiError:
        """Says when to come again: a second for each round of the engine's slots that waits."""
        slots = insides(self.model).runner.slots
        seconds = 1 + len(self.engine.waiting) // slots
        message = f"{len(self.engine.waiting)} requests wait already; try again in {seconds} s"
        return ApiError(429, message, code="queue_full", headers={"Retry-After": str(seconds)})

    async def health(self, request: Request) -> Response:
        complaint = "" if self.worker is None else self.worker.complaint
        if complaint:
            return JSONResponse({"status": "failed", "message": complaint}, 503)
        return JSONResponse({"status": "ok"})

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self, request: Request) -> Response:
        assert self.options.page is not None
        headers = {"Content-Security-Policy": PAGE_POLICY, "X-Content-Type-Options": "nosniff"}
        return HTMLResponse(self.options.page.read_text("utf-8"), headers=headers)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._about(name) for name in self.options.names]})

    async def one_model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._check_model(name)
        return JSONResponse(self._about(name))

    def _about(self, name: str) -> dict[str, Any]:
        manifest = self.model.manifest
        ours = {
            "loops": self.model.loops,
            "context": self.model.context,
            "chat": self.model.template is not None,
            "gate_trained": manifest.gate.trained,
            "threshold": manifest.gate.threshold,
            "points": manifest.gate.points,
            "depths": list(insides(self.model).exits.readable),
            "curve": [dataclasses.asdict(point) for point in manifest.gate.curve],
            "examples": list(manifest.examples),
            "exit_policy": self.options.exit_policy or insides(self.model).exits.own_policy,
            "kv_rule": self.engine.kv_rule,
            "max_tokens": self.options.most_tokens,
            "default_max_tokens": self._default_tokens(),
        }
        payload = {"id": name, "object": "model", "created": self.created, "owned_by": "rrt-edge"}
        return {**payload, "rrt_edge": ours}

    def _default_tokens(self) -> int:
        """Tokens at most of a chat's reply where the request does not say how many."""
        default, most = Sampling(max_tokens=self.options.default_tokens), self.options.most_tokens
        return self.model.sampling(default, most_tokens=most).max_tokens

    def _check_model(self, name: Any) -> None:
        names = self.options.names
        if name is None or name in names or (self.options.any_model and isinstance(name, str)):
            return
        here = " and ".join(map(repr, names))
        more = "rrt-edge serve --alias NAME, or --any-model, takes further names"
        message = f"model {shown(name)}: not served here; this server has {here} ({more})"
        raise ApiError(404, message, "model", "model_not_found")

    async def chat(self, request: Request) -> Response:
        return await self._complete(request, chat=True)

    async def completion(self, request: Request) -> Response:
        return await self._complete(request, chat=False)

    async def _complete(self, request: Request, chat: bool) -> Response:
        started, worker = time.perf_counter(), self.worker
        assert worker is not None
        content = await self._body(request)
        worker.check_room()
        asking = Asking()
        gone = asyncio.create_task(_disconnected(request))
        beginning = asyncio.create_task(self._begin(content, chat, worker, started, asking))
        try:
            await asyncio.wait((beginning, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                raise ClientDisconnect
            completing = beginning.result()
            if completing.ask.stream:
                return _EventStream(completing)
            return await self._whole(completing, gone)
        except (ClientDisconnect, asyncio.CancelledError):
            beginning.add_done_callback(_cancel_completing)
            raise
        finally:
            asking.leave()
            await _ended(gone, beginning)

    async def _begin(self, content: bytes, chat: bool, worker: Worker, started: float, asking: Asking) -> Completing:
        """Read a request and queue its choices; what takes long is done beside the event loop."""
        with in_a_task():
            answers = await self.aside.run(self._read, content, chat)
            ask = answers.ask
            with named(ask.names):
                async with self.grammars.tried(ask.sampling.grammar, asking):
                    return await Completing.begin(ask, answers, worker, self.metrics, self.aside, started)

    def _read(self, content: bytes, chat: bool) -> Answers:
        body, options = read_json(content), self.options
        name = body.get("model") if isinstance(body, dict) else None
        self._check_model(name)
        limits = options.exit_policy, options.most_tokens
        ask = (
            read_chat(body, self.model, *limits, options.default_tokens)
            if chat
            else read_completion(body, self.model, *limits)
        )
        return Answers(self.model, options.name if name is None else name, chat, ask)

    async def _whole(self, completing: Completing, gone: asyncio.Task[None]) -> Response:
        whole = asyncio.create_task(completing.whole())
        try:
            await asyncio.wait((whole, gone), return_when=asyncio.FIRST_COMPLETED)
            if not whole.done():
                raise ClientDisconnect
            return Response(await self.aside.run(to_json, whole.result()), media_type="application/json")
        finally:
            await _ended(whole)
            completing.cancel()

    async def _body(self, request: Request) -> bytes:
        """A body that is to be JSON, which must say that it is: pages of other origins cannot without being asked."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(415, "the body must be application/json")
        taken, most = bytearray(), self.options.most_bytes
        async for piece in request.stream():
            taken += piece
            if len(taken) > most:
                raise ApiError(413, f"the body is larger than {most} bytes")
        return bytes(taken)


class _EventStream(StreamingResponse):
    """A reply as it comes; a client that goes away ends it, wherever it was."""

    def __init__(self, completing: Completing) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(completing.events(), media_type="text/event-stream", headers=headers)
        self._completing = completing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._completing.cancel()


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


async def _disconnected(request: Request) -> None:
    """Ends when the client has gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _cancel_completing(beginning: asyncio.Task[Completing]) -> None:
    """End what had begun when its client had gone."""
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().cancel()


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs, and wait until it has ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def hosts_for(host: str) -> Sequence[str]:
    """Names in the Host header that a server bound to an address answers: on this machine alone, this machine's."""
    return LOCAL if host in LOCAL else ()
