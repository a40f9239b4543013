"""The engine: requests run together give the tokens each gives alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import BadInputError, Engine, ExitPolicy, Model, Sampling
from rrt_edge.runtime.decoding import request as request_module

POLICIES = ["full", "threshold=0.5", "depth=1", "depth=2", "threshold=0.7"]


def prompts(count: int, seed: int = 0, longest: int = 50) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(2, 300, rng.integers(1, longest)).tolist() for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize("kv_rule", ["exact", "latest", "skip"])
@pytest.mark.parametrize("prompt_rows", [3, 32])
def test_requests_together_equal_requests_alone(
    bundle: Path, kv_rule: str, prompt_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More requests than slots, each with its own policy and sampling; prompts in chunks, rows caught up in parts."""
    if prompt_rows == 3:
        monkeypatch.setattr(request_module, "MOST_WAITING", 3)
        monkeypatch.setattr(request_module, "PART_ROWS", 4)
    with Model.load(bundle) as model:
        engine = Engine(model, kv_rule=kv_rule, prompt_rows=prompt_rows)
        asked = []
        for index, prompt in enumerate(prompts(12)):
            policy = POLICIES[index % len(POLICIES)]
            sampling = Sampling(max_tokens=5 + index, temperature=0.7 * (index % 2), seed=index)
            asked.append((prompt, sampling, policy, engine.submit(prompt, sampling, policy)))
        streamed: dict[int, list[int]] = {}
        for request, token in engine.run():
            streamed.setdefault(request.number, []).append(token.id)
        for prompt, sampling, policy, request in asked:
            session = model.session(kv_rule=kv_rule)
            alone = list(session.stream(prompt, sampling, policy))
            ours = request.generation
            assert [(t.id, t.depth, t.text) for t in ours.tokens] == [(t.id, t.depth, t.text) for t in alone]
            assert ours.finish_reason == session.finish_reason
            assert streamed[request.number] == [token.id for token in alone]
            if kv_rule != "exact":  # where rows wait, when they are caught up may differ
                assert ours.stats.block_rows_per_token == session.stats.block_rows_per_token


def test_running_replies_do_not_wait_for_a_long_prompt(bundle: Path) -> None:
    with Model.load(bundle, reproducible=True) as model:  # without drafts, a token each time
        engine = Engine(model, prompt_rows=4)
        talking = engine.submit([5, 6], Sampling(max_tokens=40))
        while len(talking.tokens) < 3:
            engine.step()
        engine.submit([7, 8] * 200, Sampling(max_tokens=2))
        before = len(talking.tokens)
        for _ in range(3 * model.loops):
            engine.step()
        assert len(talking.tokens) == before + 3


def test_everyone_is_served_though_there_are_more_than_slots(bundle: Path) -> None:
    with Model.load(bundle) as model:
        slots = model.manifest.architecture.pasts
        engine = Engine(model)
        requests = [engine.submit([7 + index], Sampling(max_tokens=12)) for index in range(3 * slots)]
        for _ in range(3 * model.loops * 2):
            engine.step()
        counts = [len(request.tokens) for request in requests]
        assert max(counts) - min(counts) <= 1 and min(counts) >= 1


def test_the_budget_lets_requests_in_one_after_another(bundle: Path) -> None:
    with Model.load(bundle) as model:
        token_bytes = model.manifest.architecture.kv_bytes_per_token
        engine = Engine(model, kv_budget_bytes=25 * token_bytes)
        requests = [engine.submit([5, 6], Sampling(max_tokens=10)) for _ in range(5)]
        most = 0
        while engine.waiting or engine.running:
            engine.step()
            most = max(most, len(engine.running))
        assert most == 2 and all(request.finish_reason for request in requests)
        with pytest.raises(BadInputError, match="over the budget"):
            engine.submit([5, 6], Sampling(max_tokens=30))


def test_cancelling_ends_a_request_and_leaves_the_others(bundle: Path) -> None:
    with Model.load(bundle) as model:
        engine = Engine(model)
        keep, drop = (engine.submit([9, 10], Sampling(max_tokens=8)) for _ in range(2))
        for request, _ in engine.run():
            if request is drop:
                engine.cancel(drop)
        assert drop.finish_reason == "cancelled" and len(drop.tokens) == 1
        assert [token.id for token in keep.tokens] == [t.id for t in model.stream([9, 10], Sampling(max_tokens=8))]


def test_a_trace_is_replayed(bundle: Path) -> None:
    with Model.load(bundle) as model:
        engine = Engine(model)
        request = engine.submit([5, 6, 7], Sampling(max_tokens=9), ExitPolicy(trace=(1, 1, 3, 2)))
        list(engine.run())
        assert [token.depth for token in request.tokens][:8] == [1, 1, 3, 2] * 2
        alone = model.generate([5, 6, 7], Sampling(max_tokens=9), ExitPolicy(trace=(1, 1, 3, 2)))
        assert [token.id for token in alone.tokens] == [token.id for token in request.tokens]


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["exact", "latest", "skip"])
def test_prompts_that_begin_alike_are_run_once(bundle: Path, rule: str) -> None:
    """While others run, at any moment of theirs, and after their end; the tokens are those of a request alone."""
    rng = np.random.default_rng(3)
    start = rng.integers(2, 300, 40).tolist()
    policies = ["full", "threshold=0.5", "depth=2", "threshold=0.5", "full", "threshold=0.6", "depth=2", "full"]
    with Model.load(bundle) as model:
        engine = Engine(model, kv_rule=rule, prompt_rows=16)
        fed: list[int] = []
        requests = []
        for index, policy in enumerate(policies):
            prompt = start + rng.integers(2, 300, 3 * index).tolist()
            request = engine.submit(prompt, Sampling(max_tokens=6 + index), policy)
            requests.append((prompt, policy, request))
            engine.step()
            fed.append(len(request._unread))
            for _ in range(2 * index):
                engine.step()
        list(engine.run())
        prompt, _, ended = requests[4]
        late = engine.submit([*prompt, *(token.id for token in ended.tokens[:3]), 9], exit_policy="full")
        engine.step()
        assert len(late._unread) <= (0 if rule == "exact" else 3)
        engine.cancel(late)
        assert fed[0] == 39 - 16 and fed[3:6] == [0, 0, 0] and fed[-1] < 21 - 16  # beside 40 tokens that were there
        for prompt, policy, request in requests:
            alone = model.session(kv_rule=rule, lazy_prompt=False)
            expected = alone.stream(prompt, Sampling(max_tokens=len(request.tokens)), policy)
            assert [(token.id, token.depth) for token in expected] == [(t.id, t.depth) for t in request.tokens]


@pytest.mark.slow
def test_kept_rows_make_room_for_requests(bundle: Path) -> None:
    with Model.load(bundle) as model:
        engine = Engine(model, kv_budget_bytes=60 * model.manifest.architecture.kv_bytes_per_token)
        for _ in range(3):
            for index in range(3):
                engine.submit(list(range(5 + index, 25 + index)), Sampling(max_tokens=10))
            list(engine.run())
            held = sum(request.kv_bytes for request in engine._ended)
            assert held <= engine.kv_budget_bytes and engine._ended
