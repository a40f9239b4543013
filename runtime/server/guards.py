"""Who may call: names in the Host header and origins of web pages; refusals are the API's errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rrt_edge.runtime.server.api_error import ApiError


def guards(hosts: Sequence[str], origins: Sequence[str]) -> list[Middleware]:
    """Starlette's guards; no hosts: any, no origins: none but the server's own."""
    middleware = [Middleware(_InJson)] if hosts or origins else []
    if hosts:
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts)))
    if origins:
        allowed: dict[str, Any] = {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
        middleware.append(Middleware(CORSMiddleware, allow_origins=list(origins), **allowed))
    return middleware


class _InJson:
    """Makes errors in plain text, which is what Starlette's guards answer, errors of the API."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun: Message | None = None  # an answer in plain text, whose only piece comes next

        async def send_in_json(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start" and _is_plain_error(message):
                begun = message
            elif begun is None:
                await send(message)
            else:
                error = ApiError(begun["status"], message["body"].decode())
                own = (b"content-type", b"content-length")
                kept = [header for header in begun["headers"] if header[0].lower() not in own]
                response = JSONResponse(error.body, error.status)
                response.raw_headers += kept
                begun = None
                await response(scope, receive, send)

        await self._app(scope, receive, send_in_json)


def _is_plain_error(message: Message) -> bool:
    kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
    return message["status"] >= 400 and any(kind.startswith(b"text/plain") for kind in kinds)
