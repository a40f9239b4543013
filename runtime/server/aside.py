"""What takes long is done beside the event loop, in threads and processes of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.decoding.grammar_trial import MOST_TRIALS, GrammarTrials
from rrt_edge.runtime.errors import as_ours
from rrt_edge.runtime.loaded import Loaded
from rrt_edge.runtime.server.protocol import ApiError, is_cancelled
from rrt_edge.runtime.server.worker import Busy
from rrt_edge.runtime.system.children import Asking

T = TypeVar("T")
THREADS = 4
MOST_PASSED = 64  # grammars
BATCH = 64  # parts of a list that are made JSON in one go, in which no other thread runs

_dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class Aside:
    """Threads for reading requests and writing answers."""

    def __init__(self, threads: int = THREADS) -> None:
        self._threads = ThreadPoolExecutor(threads, "rrt-edge request")

    async def run(self, function: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*arguments))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Trials:
    """Grammars of requests are tried in child processes, a few at a time; who leaves takes the trial along."""

    def __init__(self, model: Loaded) -> None:
        self._model = model
        self._turns = asyncio.Semaphore(MOST_TRIALS)
        self._threads = Aside(MOST_TRIALS)
        self._lock = threading.Lock()
        self._trials: GrammarTrials | None = None
        self._passed: dict[Grammar, None] = {}  # the latest that passed, which need no further trial

    async def check(self, grammar: Grammar, asking: Asking) -> None:
        """
        Raises:
            BadInputError: the grammar is not valid, or takes too much time or memory.
        """
        if grammar in self._passed:
            return
        async with self._turns:
            await self._threads.run(self._check, grammar, asking)
        self._passed[grammar] = None
        if len(self._passed) > MOST_PASSED:
            del self._passed[next(iter(self._passed))]

    def _check(self, grammar: Grammar, asking: Asking) -> None:
        with self._lock:
            if self._trials is None:
                manifest, tokenizer = self._model.manifest, self._model.tokenizer
                self._trials = GrammarTrials(tokenizer, manifest.architecture.vocabulary, manifest.eos_token_ids)
        self._trials.check(grammar, asking)

    def close(self) -> None:
        if self._trials is not None:
            self._trials.close()
        self._threads.close()


@contextmanager
def in_a_task() -> Iterator[None]:
    """Let what is raised be an error of ours: a SystemExit in a task would end the event loop."""
    try:
        yield
    except (ApiError, Busy):
        raise
    except BaseException as error:
        if isinstance(error, GeneratorExit) or is_cancelled(error):
            raise
        raise as_ours(error) from error


def to_json(value: Any) -> bytes:
    """A large answer as JSON, piece by piece, so that other threads get their turn."""
    return "".join(_pieces(value)).encode()


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield "{"
        for index, (name, part) in enumerate(value.items()):
            yield f"{',' if index else ''}{_dumps(name)}:"
            yield from _pieces(part)
        yield "}"
    elif isinstance(value, list) and len(value) > BATCH:
        yield "["
        for start in range(0, len(value), BATCH):
            yield f"{',' if start else ''}{_dumps(value[start : start + BATCH])[1:-1]}"
        yield "]"
    elif isinstance(value, list):
        yield "["
        for index, part in enumerate(value):
            yield "," if index else ""
            yield from _pieces(part)
        yield "]"
    else:
        yield _dumps(value)
