"""What takes long is done beside the event loop, in threads and processes of its own."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from rrt_edge.runtime.decoding import grammar_trial
from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.decoding.grammar_trial import GrammarTrials
from rrt_edge.runtime.errors import BadInputError, as_ours
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError, is_cancelled
from rrt_edge.runtime.server.worker import Busy
from rrt_edge.runtime.system.children import Asking, TooSlowError

T = TypeVar("T")
THREADS = 4
QUICK_TRIALS, SLOW_TRIALS = 2, 1  # grammars at a time
QUICK_SECONDS = 0.25  # of processor time, which grammars that people use do not need
MOST_VERDICTS = 64  # kept
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


@dataclass(frozen=True)
class _Verdict:
    """What is known of a grammar: whether it took long, and whether it passed; `error` is empty where it did."""

    slow: bool
    tried: bool
    error: str = ""


class _Lane:
    """Grammars that are tried and compiled a few at a time."""

    def __init__(self, most: int, seconds: float) -> None:
        self.most, self.seconds = most, seconds
        self.turns, self.threads = asyncio.Semaphore(most), Aside(most)
        self.trials: GrammarTrials | None = None
        self.waiting = 0


class Trials:
    """Grammars of requests are tried in child processes before they are compiled; who leaves takes the trial along.

    A grammar has a moment of processor time at first. One that needs more waits for its turn among others that do, so
    that those which are compiled at once do not wait for them.
    """

    def __init__(self, model: Model, most_waiting: int) -> None:
        self._model, self._most_waiting = model, most_waiting
        self._quick, self._slow = _Lane(QUICK_TRIALS, QUICK_SECONDS), _Lane(SLOW_TRIALS, grammar_trial.LIMITS.seconds)
        self._lock = threading.Lock()
        self._verdicts: dict[Grammar, _Verdict] = {}  # the latest

    @asynccontextmanager
    async def tried(self, grammar: Grammar | None, asking: Asking) -> AsyncIterator[None]:
        """Try a grammar; the block, which compiles it, is still its turn. None: nothing is to be tried.

        Raises:
            Busy: too many wait.
            BadInputError: the grammar is not valid, or takes too much time or memory.
        """
        if grammar is None:
            yield
            return
        for lane in (self._quick, self._slow):
            async with self._turn(lane):
                if await self._passes(grammar, lane, asking):
                    yield
                    return

    @asynccontextmanager
    async def _turn(self, lane: _Lane) -> AsyncIterator[None]:
        if lane.waiting >= self._most_waiting:
            raise Busy
        lane.waiting += 1
        try:
            await lane.turns.acquire()
        finally:
            lane.waiting -= 1
        try:
            yield
        finally:
            lane.turns.release()

    async def _passes(self, grammar: Grammar, lane: _Lane, asking: Asking) -> bool:
        """Whether the grammar passes here; False where it is one for the slow lane."""
        verdict = self._verdicts.get(grammar)
        if verdict is None or (verdict.slow and lane is self._slow and not verdict.tried):
            verdict = await lane.threads.run(self._judge, grammar, lane, asking)
        if verdict.error:
            raise BadInputError(verdict.error, "grammar")
        return lane is self._slow or not verdict.slow

    def _judge(self, grammar: Grammar, lane: _Lane, asking: Asking) -> _Verdict:
        slow = lane is self._slow
        try:
            self._trials(lane).check(grammar, asking)
            verdict = _Verdict(slow, tried=True)
        except TooSlowError as error:
            if slow and error.by_clock:  # it is the machine that may be slow
                raise
            verdict = _Verdict(True, tried=slow, error=str(error) if slow else "")
        except BadInputError as error:
            if asking.left:
                raise
            verdict = _Verdict(slow, tried=True, error=str(error))
        with self._lock:
            self._verdicts[grammar] = verdict
            if len(self._verdicts) > MOST_VERDICTS:
                del self._verdicts[next(iter(self._verdicts))]
        return verdict

    def _trials(self, lane: _Lane) -> GrammarTrials:
        with self._lock:
            if lane.trials is None:
                manifest, tokenizer = self._model.manifest, self._model.tokenizer
                vocabulary, ends = manifest.architecture.vocabulary, manifest.eos_token_ids
                lane.trials = GrammarTrials(tokenizer, vocabulary, ends, lane.seconds, lane.most)
            return lane.trials

    def close(self) -> None:
        for lane in (self._quick, self._slow):
            if lane.trials is not None:
                lane.trials.close()
            lane.threads.close()


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
