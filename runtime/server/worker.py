"""A thread that steps the `Engine`; requests come from an event loop and their tokens go back to it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.reply import Token
from rrt_edge.runtime.decoding.request import Request
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.engine import Engine
from rrt_edge.runtime.errors import RRTEdgeError, as_ours

STALLED = 10.0  # seconds without a step, while requests run, after which the engine is not well
PREPARING = 2  # threads
COMPILING = 4  # threads for requests with a grammar
MOST_FAILURES = 2  # steps that fail as a whole, one after another, before all requests end
log = logging.getLogger(__name__)


class Busy(Exception):
    """So many requests wait that no further one is taken."""


@dataclass
class Ticket:
    """A request under way and where its tokens go: a token, an error, or None at the end."""

    request: Request
    loop: asyncio.AbstractEventLoop
    queue: asyncio.Queue[Token | RRTEdgeError | None] = field(default_factory=asyncio.Queue)


class Worker:
    """Runs an engine until it is stopped. Its methods are for the event loop's thread."""

    def __init__(self, engine: Engine, most_waiting: int) -> None:
        self.engine, self.most_waiting = engine, most_waiting
        self._tickets: dict[int, Ticket] = {}  # by the request's number
        self._cancelled: list[Request] = []
        self._wake = threading.Condition()
        self._stopping = False
        self._failures = 0  # steps that failed as a whole, one after another
        self._stepped = time.monotonic()
        self._threads = ThreadPoolExecutor(PREPARING, "rrt-edge prepare")
        self._grammar_threads = ThreadPoolExecutor(COMPILING, "rrt-edge grammar")
        self._thread = threading.Thread(target=self._run, name="rrt-edge engine", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self.engine.waiting)

    @property
    def running(self) -> int:
        return len(self.engine.running)

    @property
    def asked(self) -> bool:
        """Whether a request is under way."""
        return bool(self._tickets)

    @property
    def complaint(self) -> str:
        """What is wrong with the engine; empty where it is well."""
        if not self._thread.is_alive():
            return "the engine has ended"
        seconds = time.monotonic() - self._stepped
        if seconds > STALLED and (self.running or self.waiting):
            return f"the engine has made no step for {seconds:.0f} s"
        return ""

    def check_room(self) -> None:
        """
        Raises:
            Busy: too many wait.
            RRTEdgeError: the engine has ended.
        """
        if not self._thread.is_alive():
            raise RRTEdgeError("the engine has ended; restart the server")
        if self.waiting >= self.most_waiting:
            raise Busy

    async def submit(self, prompt: list[int], sampling: Sampling, policy: ExitPolicy) -> Ticket:
        """Queue a request.

        Raises:
            Busy: too many wait.
            BadInputError: as `Engine.submit`.
        """
        self.check_room()
        # A grammar may take a while to compile: in threads that no other request waits for.
        threads = self._threads if sampling.grammar is None else self._grammar_threads
        prepare = partial(self.engine.prepare, prompt, sampling, policy)
        prepared = await asyncio.get_running_loop().run_in_executor(threads, prepare)
        ticket = Ticket(prepared, asyncio.get_running_loop())
        with self._wake:
            self._tickets[prepared.number] = ticket
            self.engine.enqueue(prepared)
            self._wake.notify()
        return ticket

    async def tokens(self, ticket: Ticket) -> AsyncGenerator[Token, None]:
        """The tokens of a request as they come; leaving the iterator early ends the request.

        Raises:
            RRTEdgeError: the model failed.
        """
        try:
            while True:
                item = await ticket.queue.get()
                if isinstance(item, RRTEdgeError):
                    raise item
                if item is None:
                    return
                yield item
        finally:
            self.cancel(ticket)

    def cancel(self, ticket: Ticket) -> None:
        """End a request before the next block step; nothing where it has ended."""
        with self._wake:
            if self._tickets.pop(ticket.request.number, None) is not None:
                self._cancelled.append(ticket.request)
                self._wake.notify()

    def stop(self) -> None:
        """End the thread; requests under way get no further token."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        for threads in (self._threads, self._grammar_threads):
            threads.shutdown(wait=False, cancel_futures=True)
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._turn()
            except BaseException as error:  # a panic of a library in Rust is no `Exception`
                log.exception("the engine's thread failed; all requests end")
                self._end_all(as_ours(error))

    def _turn(self) -> None:
        """Wait until there is something to do, and do it."""
        with self._wake:
            self._wake.wait_for(lambda: self._stopping or self._cancelled or self.waiting or self.running)
            if self._stopping:
                return
            self._stepped = time.monotonic()
            for request in self._cancelled:
                self.engine.cancel(request)
            self._cancelled.clear()
        self._step()
        self._stepped = time.monotonic()

    def _step(self) -> None:
        """One block step; hands its tokens to those who asked. One that fails again and again ends all requests."""
        tokens: list[tuple[Request, Token]] = []
        failure: RRTEdgeError | None = None
        try:
            tokens = self.engine.step()
            self._failures = 0
        except BaseException as error:
            log.exception("a step failed")
            failure = as_ours(error)
            self._failures += 1
        for request, token in tokens:
            self._deliver(request, token)
        with self._wake:
            requests = [ticket.request for ticket in self._tickets.values()]
        for request in requests:
            lost = failure is not None and request not in self.engine.waiting and request not in self.engine.running
            if request.finish_reason or lost:
                self._end(request, request.error or (failure if lost else None))
        if failure is not None and self._failures >= MOST_FAILURES:
            self._end_all(failure)

    def _end_all(self, error: RRTEdgeError) -> None:
        """Whatever is under way or waits ends with an error."""
        self._failures = 0
        with self._wake:
            self.engine.waiting.clear()
            self.engine.running.clear()
            requests = [ticket.request for ticket in self._tickets.values()]
        for request in requests:
            if not request.finish_reason:
                request.fail(error)
            self._end(request, request.error)

    def _deliver(self, request: Request, item: Token | RRTEdgeError | None) -> None:
        ticket = self._tickets.get(request.number)
        if ticket is not None:
            with suppress(RuntimeError):  # its event loop has ended
                ticket.loop.call_soon_threadsafe(ticket.queue.put_nowait, item)

    def _end(self, request: Request, error: RRTEdgeError | None) -> None:
        self._deliver(request, error)
        with self._wake:
            self._tickets.pop(request.number, None)
