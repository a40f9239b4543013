"""Connections that cannot be kept open by sending or reading slowly, and of which there are only so many."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rrt_edge.runtime.server.api_error import ApiError


@dataclass(frozen=True)
class Limits:
    """What a connection may take.

    Attributes:
        header_seconds: until a request's headers are whole.
        body_seconds: from then on until its body is.
        send_seconds: that what is sent may wait for a client that does not read.
        connections: at a time; a further one is answered with 503 and closed.
    """

    header_seconds: float = 10
    body_seconds: float = 30
    send_seconds: float = 30
    connections: int = 512


class Connection(H11Protocol):
    """uvicorn's connection with limits of time and number, which uvicorn has for idle ones alone."""

    limits: ClassVar[Limits] = Limits()

    @classmethod
    def limited(cls, limits: Limits) -> type[Connection]:
        """The same with other limits; uvicorn makes connections of a class."""
        return type(cls.__name__, (cls,), {"limits": limits})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._phase: Any = None  # of the client, as h11 has it
        self._reading: asyncio.TimerHandle | None = None  # ends a request that does not become whole
        self._sending: asyncio.TimerHandle | None = None  # ends a connection whose client does not read
        self._begun = False  # a byte has come

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(ApiError(503, f"{self.limits.connections} connections are open already; try again later"))
        self._watch_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._reading, self._sending):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        self._begun = True
        super().data_received(data)
        self._watch_reading()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_reading()
        self._watch_closing()

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg))

    def shutdown(self) -> None:
        self._close_with(super().shutdown)

    def timeout_keep_alive_handler(self) -> None:
        self._close_with(super().timeout_keep_alive_handler)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending = self._sending or self.loop.call_later(self.limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sending is not None and not self.transport.is_closing():
            self._sending.cancel()
            self._sending = None

    def _watch_reading(self) -> None:
        """Bound how long the headers, or the body, may take from now on."""
        phase = self.conn.their_state
        if phase is self._phase or self.transport.is_closing():
            return
        self._phase = phase
        if self._reading is not None:
            self._reading.cancel()
        self._reading, seconds = None, {h11.IDLE: self.limits.header_seconds, h11.SEND_BODY: self.limits.body_seconds}
        if phase in seconds:
            part = "headers" if phase is h11.IDLE else "body"
            self._reading = self.loop.call_later(seconds[phase], self._too_slow, part, seconds[phase])

    def _too_slow(self, part: str, seconds: float) -> None:
        if self._begun:
            self._refuse(ApiError(408, f"the request's {part} took longer than {seconds:g} s"))
        else:
            self.transport.abort()

    def _refuse(self, error: ApiError) -> None:
        """Answer without the application, where no answer has begun, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True  # whoever works on the request hears that the client has gone
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.abort()
            return
        body = json.dumps(error.body).encode()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=error.status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._watch_closing()

    def _close_with(self, close: Any) -> None:
        try:
            close()
        except h11.LocalProtocolError:  # the request was no HTTP
            self.transport.abort()
        self._watch_closing()

    def _watch_closing(self) -> None:
        """A closed connection first sends what is left, which nobody may read."""
        if self.transport.is_closing() and self._sending is None:
            self._sending = self.loop.call_later(self.limits.send_seconds, self.transport.abort)
