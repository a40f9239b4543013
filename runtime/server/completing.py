"""One request under way: its choices run together in the engine, and are told as they come or as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.errors import as_ours
from rrt_edge.runtime.server.api_error import api_error, is_cancelled
from rrt_edge.runtime.server.aside import Aside, in_a_task
from rrt_edge.runtime.server.door import Answers, Ask
from rrt_edge.runtime.server.metrics import Metrics
from rrt_edge.runtime.server.worker import Ticket, Worker


@dataclass(frozen=True)
class Completing:
    """The choices of a request, `Sampling.n` for each prompt. Whoever stops asking for its tokens ends it."""

    ask: Ask
    answers: Answers
    worker: Worker
    metrics: Metrics
    aside: Aside
    started: float
    tickets: tuple[Ticket, ...]

    @classmethod
    async def begin(
        cls, ask: Ask, answers: Answers, worker: Worker, metrics: Metrics, aside: Aside, started: float
    ) -> Completing:
        """Queue all choices, or none.

        Raises:
            Busy, BadInputError: as `Worker.submit`.
        """
        tickets: list[Ticket] = []
        try:
            for prompt in ask.prompts:
                for index in range(ask.sampling.n):
                    tickets.append(await worker.submit(prompt, ask.sampling.choice(index), ask.policy))
        except BaseException:
            for ticket in tickets:
                worker.cancel(ticket)
            raise
        return cls(ask, answers, worker, metrics, aside, started, tuple(tickets))

    def cancel(self) -> None:
        """End what still runs."""
        for ticket in self.tickets:
            self.worker.cancel(ticket)

    async def told(self) -> AsyncGenerator[str, None]:
        """The replies as they come, in pieces of the answer's body."""
        stream = self.answers.stream()
        try:
            for piece in stream.begin():
                yield piece
            async with aclosing(self._tokens()) as tokens:
                async for index, token in tokens:
                    request = self.tickets[index].request
                    ended = request.finish_reason if token is request.tokens[-1] else ""
                    for piece in stream.token(index, token, ended):
                        yield piece
            for piece in stream.end(self._generations()):
                yield piece
        except BaseException as error:  # whatever failed, the client is to hear of it
            if isinstance(error, GeneratorExit) or is_cancelled(error):
                raise
            for piece in stream.failed(api_error(error)):
                yield piece

    async def whole(self) -> dict[str, Any]:
        """The answer at once.

        Raises:
            RRTEdgeError: the model failed.
        """
        with in_a_task():
            async with aclosing(self._tokens()) as tokens:
                async for _ in tokens:
                    pass
            generations = self._generations()
            return await self.aside.run(self.answers.whole, generations)

    def _generations(self) -> list[Generation]:
        return [ticket.request.generation for ticket in self.tickets]

    async def _tokens(self) -> AsyncGenerator[tuple[int, Token], None]:
        """The tokens of all choices as they come, with the number of their choice."""
        arrivals: asyncio.Queue[tuple[int, Token] | BaseException | None] = asyncio.Queue()
        tasks = [asyncio.create_task(self._forward(index, arrivals)) for index in range(len(self.tickets))]
        try:
            left = len(tasks)
            while left:
                item = await arrivals.get()
                if item is None:
                    left -= 1
                elif isinstance(item, BaseException):
                    raise item
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _forward(self, index: int, arrivals: asyncio.Queue[tuple[int, Token] | BaseException | None]) -> None:
        ticket, before, first = self.tickets[index], self.started, True
        try:
            async with aclosing(self.worker.tokens(ticket)) as tokens:
                async for token in tokens:
                    now = time.perf_counter()
                    self.metrics.token(token, now - before, first)
                    before, first = now, False
                    arrivals.put_nowait((index, token))
            if not first:
                self.metrics.ended(ticket.request.generation.stats, time.perf_counter() - self.started)
            arrivals.put_nowait(None)
        except BaseException as error:
            if is_cancelled(error):
                raise
            arrivals.put_nowait(as_ours(error))
