"""`TokenStream`: tokens as they come, for `for` and for `async for`, which another thread may stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Self

from rrt_edge.runtime.decoding.reply import Generation, Token, thought_of
from rrt_edge.runtime.interfaces import Stream
from rrt_edge.runtime.system.options import shown


class TokenStream(Stream):
    """A `Stream` of what a generator yields."""

    def __init__(
        self,
        tokens: Generator[Token, None, None],
        cancel: Callable[[], None],
        generation: Callable[[tuple[Token, ...]], Generation],
    ) -> None:
        self._tokens, self._cancel, self._generation = tokens, cancel, generation
        self._taken: list[Token] = []

    def __repr__(self) -> str:
        return f"Stream(tokens so far: {len(self._taken)}, text={shown(self.text)})"

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Token:
        token = next(self._tokens)
        self._taken.append(token)
        return token

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Token:
        """The next token, from a thread beside the event loop; a cancelled task waits for the block step under way."""
        step = asyncio.get_running_loop().run_in_executor(None, self._next)
        try:
            token = await asyncio.shield(step)
        except asyncio.CancelledError:
            self._cancel()
            await asyncio.wait([step])
            if not step.cancelled():
                step.exception()  # it is of no interest any more
            self.close()
            raise
        if token is None:
            raise StopAsyncIteration
        return token

    def _next(self) -> Token | None:
        return next(self, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the reply here."""
        self._tokens.close()

    def cancel(self) -> None:
        """End the reply from any thread: the one that asks for tokens gets none behind the block step under way."""
        self._cancel()

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(token.text for token in self._taken)

    @property
    def thought(self) -> str:
        """What the model thought before it answered, so far."""
        return thought_of(self._taken)

    @property
    def generation(self) -> Generation:
        """The reply so far, with its statistics.

        Raises:
            BadInputError: no token has come yet.
        """
        return self._generation(tuple(self._taken))
