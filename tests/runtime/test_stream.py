"""Streams: threads, asyncio, cancelling within a block step, leaving early."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from rrt_edge.runtime import BadInputError, ExitPolicy, Model, Sampling, Session, Stream
from rrt_edge.runtime.running.block import BlockRunner
from tests.runtime.replies import LONG, PROMPT, ids_of


def test_threads_share_a_model(model: Model) -> None:
    prompts = [[20 + at, 30, 40 + at] for at in range(8)]
    alone = [ids_of(model, prompt, max_tokens=30) for prompt in prompts]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda prompt: ids_of(model, prompt, max_tokens=30), prompts))
    assert together == alone


def test_async_for_gives_the_same_tokens_without_blocking(model: Model) -> None:
    expected, turns = ids_of(model, PROMPT, max_tokens=30), 0

    async def one() -> list[int]:
        return [token.id async for token in model.stream(PROMPT, Sampling(max_tokens=30), "threshold=0.5")]

    async def spin(done: asyncio.Event) -> None:
        nonlocal turns
        while not done.is_set():
            turns += 1
            await asyncio.sleep(0)

    async def all_at_once() -> list[list[int]]:
        done = asyncio.Event()
        spinning = asyncio.create_task(spin(done))
        found = await asyncio.gather(*(one() for _ in range(4)))
        done.set()
        await spinning
        return found

    assert asyncio.run(all_at_once()) == [expected] * 4
    assert turns > 30  # the loop ran on between tokens


def test_a_cancelled_task_stops_within_a_block_step(model: Model, calls: list[int]) -> None:
    """Also in the middle of a long prompt: no call of the graph begins behind the one under way."""
    session, begun = model.session(lazy_prompt=False), threading.Event()
    run, threads = session._decoder._run, []

    def slow(*given: object) -> object:
        threads.append(threading.get_ident())
        begun.set()
        return run(*given)  # type: ignore[arg-type]

    session._decoder._run = slow  # type: ignore[method-assign,assignment]

    async def main() -> None:
        async def ask() -> None:
            async for _ in session.stream(LONG, Sampling(max_tokens=50)):
                pass

        task = asyncio.create_task(ask())
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    before = len(calls)
    assert session.finish_reason == "cancelled" and threads[0] != threading.get_ident()
    assert len(session.ids) == session._decoder.length < len(LONG)  # whole chunks of the prompt are kept
    assert len(calls) == before  # and nothing runs on
    assert [token.id for token in session.stream(LONG, Sampling(max_tokens=5))] == [
        token.id for token in model.stream(LONG, Sampling(max_tokens=5))
    ]


def test_another_thread_cancels_between_chunks_of_a_prompt_and_of_waiting_rows(model: Model, calls: list[int]) -> None:
    """The prompt's deeper loops wait for the first token to go deeper: they too end within a block step."""
    session = model.session(lazy_prompt=True)
    session._decoder.prefill(LONG, ExitPolicy(), lazy=True)
    session._hold(session._decoder, list(LONG))
    stream = session.stream([*LONG, 7], Sampling(max_tokens=50), "threshold=1")
    run, count = session._decoder._run, 0

    def cancelling(*given: object) -> object:
        nonlocal count
        count += 1
        if count == 2:
            threading.Thread(target=stream.cancel).start()
            while not session._decoder.cancelled:
                pass
        return run(*given)  # type: ignore[arg-type]

    session._decoder._run = cancelling  # type: ignore[method-assign,assignment]
    assert list(stream) == [] and count == 2
    session._decoder._run = run  # type: ignore[method-assign]
    assert session.finish_reason == "cancelled" and session._decoder.length == len(LONG)
    expected = model.generate([*LONG, 7], Sampling(max_tokens=9), "threshold=1")
    assert session.generate([*LONG, 7], Sampling(max_tokens=9), "threshold=1").text == expected.text


@pytest.mark.slow
@pytest.mark.parametrize("left", ["closed", "with", "dropped", "async"])
def test_a_stream_that_is_left_frees_its_keys_and_values(model: Model, left: str, calls: list[int]) -> None:
    async def some(stream: Stream) -> None:
        async with stream:
            async for _ in stream:
                break

    def leave() -> weakref.ref[object]:
        session = model.session()
        stream = session.stream(PROMPT, Sampling(max_tokens=50))
        if left == "async":
            asyncio.run(some(stream))
        elif left == "with":
            with stream:
                next(stream)
        else:
            next(stream)
        if left == "closed":
            stream.close()
            assert next(stream, None) is None
        return weakref.ref(session._decoder.state.cache)

    cache = leave()
    before = len(calls)
    gc.collect()
    assert cache() is None and len(calls) == before


def test_an_interrupt_leaves_a_session_that_goes_on(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model._loaded.drafting, "reads_text", False)  # a run for each token
    session, run, count = model.session(), BlockRunner.run, 0

    def interrupted(self: BlockRunner, *given: object, **named: object) -> object:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt
        return run(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockRunner, "run", interrupted)
    stream, tokens = session.stream(PROMPT, Sampling(max_tokens=20), "depth=1"), []
    with pytest.raises(KeyboardInterrupt):
        for token in stream:
            tokens.append(token.id)
    assert len(tokens) == 2 == stream.generation.stats.generated_tokens
    monkeypatch.setattr(BlockRunner, "run", run)
    assert (
        session.generate(PROMPT, Sampling(max_tokens=20)).text == model.generate(PROMPT, Sampling(max_tokens=20)).text
    )


def test_a_stream_tells_what_it_has_so_far(model: Model) -> None:
    stream = model.stream(PROMPT, Sampling(max_tokens=10))
    with pytest.raises(BadInputError, match="no token"):
        _ = stream.generation
    next(stream), next(stream)
    assert stream.generation.stats.generated_tokens == 2 and stream.generation.finish_reason == ""
    assert isinstance(model.session(), Session)
