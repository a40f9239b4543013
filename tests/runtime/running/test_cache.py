"""The cache: forks share rows and never disturb each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rrt_edge.runtime import Model, Sampling
from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.kv_rules import KV_RULES
from rrt_edge.runtime.running.cpu_cache import SPARE, KVCache

SHAPE = Architecture("llama", 2, 1, 0, 4, 1, 1, 2, 10, 512, 8, 32)


def rows(numbers: list[int]) -> np.ndarray:
    """Keys [1, 1, S, 2] that show which rows they are."""
    return np.repeat(np.array(numbers, np.float32)[None, None, :, None], 2, axis=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["add", "fork", "cut"]), st.integers(1, 90)), max_size=25))
def test_forks_hold_what_they_would_alone(actions: list[tuple[int, str, int]]) -> None:
    caches, models = [KVCache(SHAPE)], [list[int]()]
    number = 0
    for which, action, amount in actions:
        which %= len(caches)
        cache, model = caches[which], models[which]
        if action == "add":
            new = list(range(number, number + amount))
            number += amount
            cache.append(1, (rows(new), rows(new)), len(model))
            model += new
        elif action == "cut":
            cache.truncate(amount)
            del model[amount:]
        elif len(caches) < 4:
            caches.append(cache.fork())
            models.append(list(model))
        for one, wanted in zip(caches, models, strict=True):
            keys, values = one.buffers(1)
            assert one.lengths[0] == len(wanted)
            np.testing.assert_array_equal(keys[0, 0, 0, : len(wanted), 0], wanted)
            np.testing.assert_array_equal(values[0, 0, 0, : len(wanted), 1], wanted)


WINDOW = 5
SLIDING = Architecture("mistral", 2, 2, 0, 4, 1, 1, 2, 10, 512, 8, 32, windows=((WINDOW, None), (None, None)))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["add", "fork", "back"]), st.integers(1, 90)), max_size=30)
)
def test_a_window_keeps_what_may_be_seen(actions: list[tuple[int, str, int]]) -> None:
    """Whatever is dropped, the rows that the next one sees are there, in order; the other layer keeps all."""
    caches, models = [KVCache(SLIDING)], [list[int]()]
    number = 0
    for which, action, amount in actions:
        which %= len(caches)
        cache, model = caches[which], models[which]
        if action == "add":
            new = list(range(number, number + amount))
            number += amount
            both = np.concatenate([rows(new), -rows(new)])  # layer 0 slides, layer 1 does not
            cache.append(1, (both, both), len(model))
            model += new
        elif action == "back":
            length = max(0, len(model) - amount)
            if cache.reaches(length) or length == 0:
                cache.truncate(length)
                del model[length:]
        elif len(caches) < 4:
            caches.append(cache.fork())
            models.append(list(model))
        for one, wanted in zip(caches, models, strict=True):
            sliding, whole = one.valid_rows(1)
            assert one.lengths[0] == whole == len(wanted) and sliding >= min(WINDOW - 1, len(wanted))
            np.testing.assert_array_equal(one.buffers(1, 0)[0][0, 0, 0, :sliding, 0], wanted[len(wanted) - sliding :])
            np.testing.assert_array_equal(one.buffers(1, 1)[1][0, 0, 0, :whole, 1], [-row for row in wanted])
            assert one.buffers(1, 0)[0].shape[3] <= WINDOW + 256


def test_going_back_a_little_loses_nothing() -> None:
    cache = KVCache(SLIDING)
    for length in range(1000):
        both = np.concatenate([rows([length]), -rows([length])])
        cache.append(1, (both, both), length)
        assert cache.reaches(max(0, length + 1 - SPARE))
    assert cache.valid_rows(1)[0] < 200 and not cache.reaches(100)


def test_a_fork_copies_nothing_until_both_have_gone_on() -> None:
    cache = KVCache(SHAPE)
    cache.append(1, (rows([1, 2, 3]), rows([1, 2, 3])), 0)
    fork = cache.fork()
    assert fork.buffers(1)[0] is cache.buffers(1)[0]
    cache.append(1, (rows([4]), rows([4])), 3)
    assert fork.buffers(1)[0] is cache.buffers(1)[0]
    fork.append(1, (rows([5]), rows([5])), 3)
    assert fork.buffers(1)[0] is not cache.buffers(1)[0]


DEEP = Architecture("llama", 3, 1, 0, 4, 1, 1, 2, 10, 512, 8, 32)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["enter", "deeper", "deeper", "fork", "cut"]), st.integers(1, 70)),
        max_size=30,
    )
)
def test_one_slot_holds_each_row_as_its_deepest_loop_made_it(actions: list[tuple[int, str, int]]) -> None:
    """Rows enter loop 1, go deeper or leave; forks come and go meanwhile, and have none of the rows on their way."""
    caches, models = [KVCache(DEEP, rule=KV_RULES["last"])], [list[int]()]
    moving, number = [(0, 0)], 0  # rows on their way, and the loop that they have run
    for which, action, amount in actions:
        which %= len(caches)
        cache, model, (count, depth) = caches[which], models[which], moving[which]
        if action in ("enter", "deeper") and (count > 0) == (action == "deeper"):
            count = count or amount
            new = list(range(number, number + count))
            number += count
            cache.append(depth + 1, (rows(new), rows(new)), len(model))
            moving[which] = count, depth + 1
            if depth + 1 == 3 or amount % 2:  # they leave
                for deeper in range(depth + 2, 4):
                    cache.copy_last(count, depth + 1, deeper)
                model += new
                moving[which] = 0, 0
        elif action == "cut":
            cache.truncate(min(amount, len(model)))
            del model[amount:]
            moving[which] = 0, 0
        elif action == "fork" and len(caches) < 4:
            caches.append(cache.fork())
            models.append(list(model))
            moving.append((0, 0))
        for one, wanted, (under_way, ran) in zip(caches, models, moving, strict=True):
            assert one.lengths == [len(wanted) + under_way * (loop <= ran) for loop in (1, 2, 3)]
            for loop in (1, 2, 3):
                keys, values = one.buffers(loop)
                assert keys is one.buffers(1)[0]
                np.testing.assert_array_equal(keys[0, 0, 0, : len(wanted), 0], wanted)
                np.testing.assert_array_equal(values[0, 0, 0, : len(wanted), 1], wanted)


def test_a_fork_of_one_slot_copies_nothing_until_both_have_gone_on() -> None:
    cache = KVCache(DEEP, rule=KV_RULES["last"])
    for depth in (1, 2, 3):
        cache.append(depth, (rows([1, 2, 3]), rows([1, 2, 3])), 0)
    fork = cache.fork()
    for depth in (1, 2, 3):
        cache.append(depth, (rows([depth]), rows([depth])), 3)
    assert fork.buffers(1)[0] is cache.buffers(3)[0] and cache.buffers(2)[0][0, 0, 0, 3, 0] == 3
    fork.append(1, (rows([5]), rows([5])), 3)
    assert fork.buffers(3)[0] is not cache.buffers(3)[0]


def test_a_forked_conversation_goes_on_by_itself(bundle: Path) -> None:
    with Model.load(bundle) as model:
        session = model.session()
        prompt = [5, 6, 7, 8]
        said = [token.id for token in session.stream(prompt, Sampling(max_tokens=12), "threshold=0.5")]
        fork = session.fork()
        for number, one in enumerate((session, fork, session.fork())):
            ids = prompt + said + [20 + number, 30]
            ours = [token.id for token in one.stream(ids, Sampling(max_tokens=10), "threshold=0.5")]
            assert ours == [token.id for token in model.stream(ids, Sampling(max_tokens=10), "threshold=0.5")]
