"""Choosing tokens: transformers' logits processors as the judge, ties and extremes included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from rrt_edge.runtime import BadInputError, RRTEdgeError, Sampling
from rrt_edge.runtime.decoding.logits import candidates, less_repetition, penalised
from rrt_edge.runtime.decoding.sampler import Sampler

VOCABULARY = 60


def theirs(logits: NDArray[np.float32], sampling: Sampling, history: list[int]) -> NDArray[np.float64]:
    """The probabilities [V] that transformers' processors leave, in the order `generate` applies them."""
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
        TypicalLogitsWarper,
    )

    processors = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(float(sampling.repetition_penalty))])
    scores = processors(torch.tensor([history], dtype=torch.int64), torch.tensor(logits)[None])
    warpers = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    if sampling.typical_p < 1:
        warpers.append(TypicalLogitsWarper(float(sampling.typical_p)))
    probabilities: NDArray[np.float64] = torch.softmax(warpers(None, scores.double()), -1)[0].numpy()
    return probabilities


def ours(logits: NDArray[np.float32], sampling: Sampling, history: list[int]) -> NDArray[np.float64]:
    return distribution(penalised(logits, history, sampling.repetition_penalty), sampling)


def distribution(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """The probability [V] of each token."""
    tokens, probabilities = candidates(logits, sampling)
    whole = np.zeros(len(logits))
    whole[tokens] = probabilities
    return whole


@pytest.mark.usefixtures("checkpoints")
@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sampling=st.builds(
        Sampling,
        temperature=st.floats(0.05, 5),
        top_k=st.one_of(st.integers(0, 5), st.integers(VOCABULARY - 1, VOCABULARY + 1)),
        top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1)),
        min_p=st.one_of(st.just(0.0), st.just(1.0), st.floats(0, 1)),
        typical_p=st.one_of(st.just(1.0), st.floats(0.01, 0.99)),
        repetition_penalty=st.floats(0.5, 2),
    ),
    history=st.lists(st.integers(0, VOCABULARY - 1), max_size=100),
)
def test_survivors_and_probabilities_are_transformers(seed: int, sampling: Sampling, history: list[int]) -> None:
    logits = np.random.default_rng(seed).normal(size=VOCABULARY, scale=4).astype(np.float32)
    expected, found = theirs(logits, sampling, history), ours(logits, sampling, history)
    np.testing.assert_array_equal(found > 0, expected > 0)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.usefixtures("checkpoints")
@settings(max_examples=200, deadline=None)
@given(
    levels=st.lists(st.integers(-2, 2), min_size=1, max_size=30),
    top_k=st.integers(0, 31),
    top_p=st.sampled_from([1.0, 0.93, 0.71, 0.33, 0.01]),
    min_p=st.sampled_from([0.0, 0.11, 0.77, 1.0]),
)
def test_with_ties_as_many_survive_as_in_transformers(
    levels: list[int], top_k: int, top_p: float, min_p: float
) -> None:
    logits = np.array(levels, np.float32) * 1.3
    sampling = Sampling(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p)
    # A whole number of equal tokens can hold 1 - top_p exactly; rounding then decides, so such draws say nothing.
    shares = np.cumsum(np.sort(theirs(logits, Sampling(temperature=0.9, top_k=top_k), [])))
    if np.abs(shares - (1 - top_p)).min() < 1e-9:
        return
    expected, found = theirs(logits, sampling, []), ours(logits, sampling, [])
    # Which of equal tokens top-p drops is not defined; how many are left of each is.
    np.testing.assert_allclose(np.sort(found), np.sort(expected), rtol=1e-9)
    if top_p == 1.0:
        np.testing.assert_array_equal(found > 0, expected > 0)


def test_top_k_keeps_all_that_equal_the_last() -> None:
    tokens, probabilities = candidates(np.array([1, 3, 2, 2, 0], np.float32), Sampling(temperature=1.0, top_k=2))
    assert tokens.tolist() == [1, 2, 3]
    assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("top_p", [1e-300, 0.4, 0.999999])
def test_a_nucleus_of_a_flat_distribution_is_its_share(top_p: float) -> None:
    tokens, _ = candidates(np.zeros(1000, np.float32), Sampling(temperature=1.0, top_p=top_p))
    assert len(tokens) in range(max(1, round(1000 * top_p)), round(1000 * top_p) + 2)


@pytest.mark.parametrize("temperature", [1e-320, 1e-30, 1e300])
def test_extreme_temperatures_have_their_limits(temperature: float) -> None:
    logits = np.array([-1, 2, 2, 1, -np.inf], np.float32)
    found = distribution(logits, Sampling(temperature=temperature, top_p=0.9999, min_p=1e-9))
    limit = [0, 0.5, 0.5, 0, 0] if temperature < 1 else [0.25, 0.25, 0.25, 0.25, 0]
    np.testing.assert_allclose(found, limit)


def test_greedy_takes_the_first_of_the_likeliest_after_the_penalty() -> None:
    logits = np.array([0.5, 2.0, 1.5, 1.5], np.float32)
    greedy = Sampler(Sampling(repetition_penalty=2.0))
    assert greedy.pick(logits, []) == 1
    assert greedy.pick(logits, [1, 1]) == 2
    assert logits.tolist() == [0.5, 2.0, 1.5, 1.5]


def test_negative_logits_are_penalised_too() -> None:
    assert Sampler(Sampling(repetition_penalty=3.0)).pick(np.array([-1, -2], np.float32), [0]) == 1


@pytest.mark.parametrize("penalty", [1e-45, 1e38])
def test_an_extreme_penalty_still_picks_a_token(penalty: float) -> None:
    sampler = Sampler(Sampling(temperature=1.0, repetition_penalty=penalty, seed=0))
    assert sampler.pick(np.array([-5, 5, 4], np.float32), [0, 1]) in (1, 2)


@pytest.mark.parametrize("extra", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_a_seed_repeats_and_only_candidates_are_picked(extra: dict[str, Any]) -> None:
    sampling = Sampling(temperature=1.5, seed=7, **extra)
    rows = np.random.default_rng(1).normal(size=(50, VOCABULARY)).astype(np.float32)
    first, second = Sampler(sampling), Sampler(sampling)
    picked = [first.pick(row, [0] * place) for place, row in enumerate(rows)]
    assert picked == [second.pick(row, [0] * place) for place, row in enumerate(rows)]
    assert all(token in candidates(row, sampling)[0] for token, row in zip(picked, rows, strict=True))
    assert len(set(picked)) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("logits", [[0, np.nan, 1], [0, np.inf, 1], [-np.inf] * 3])
def test_logits_without_a_finite_maximum_are_an_error(logits: list[float], temperature: float) -> None:
    with pytest.raises(RRTEdgeError, match="weights may be damaged"):
        Sampler(Sampling(temperature=temperature)).pick(np.array(logits, np.float32), [])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", 1.5),
        ("top_p", float("nan")),
        ("min_p", float("nan")),
        ("min_p", -0.1),
        ("repetition_penalty", float("inf")),
        ("repetition_penalty", float("nan")),
        ("seed", 0.5),
        ("max_tokens", None),
        ("stop", b"word"),
        ("stop", {"word"}),
        ("stop", (1,)),
    ],
)
def test_wrong_kinds_of_values_are_refused_in_one_line(field: str, value: object) -> None:
    with pytest.raises(BadInputError) as caught:
        Sampling(**{field: value})  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith(f"{field.replace('_', '-')} {value!r}: must be ")
    assert "\n" not in message


def test_numpys_numbers_are_numbers() -> None:
    assert Sampling(temperature=np.float32(0.5), top_k=np.int64(3)).top_k == 3  # type: ignore[arg-type]


@given(reply=st.lists(st.integers(0, 9), max_size=30), presence=st.floats(-2, 2), frequency=st.floats(-2, 2))
def test_presence_and_frequency_penalties_are_those_of_openais_formula(
    reply: list[int], presence: float, frequency: float
) -> None:
    logits = np.linspace(-3, 3, 10, dtype=np.float32)
    expected = [logit - reply.count(at) * frequency - (at in reply) * presence for at, logit in enumerate(logits)]
    found = less_repetition(logits, reply, presence, frequency)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_penalties_of_the_reply_leave_the_prompt_alone_and_biases_ban_and_force() -> None:
    logits = np.array([1, 2, 3, 0], np.float32)
    assert Sampler(Sampling(presence_penalty=2.0), prompt_tokens=1).pick(logits, [2]) == 2
    assert Sampler(Sampling(presence_penalty=2.0), prompt_tokens=1).pick(logits, [2, 2]) == 1
    assert Sampler(Sampling(logit_bias={2: -100.0})).pick(logits, []) == 1
    assert Sampler(Sampling(logit_bias={3: 100.0})).pick(logits, []) == 3


def test_nothing_ends_a_reply_before_its_least_length() -> None:
    logits = np.array([1, 2, 3, 0], np.float32)
    sampler = Sampler(Sampling(min_tokens=2), prompt_tokens=1, ends={2})
    assert [sampler.pick(logits, [0, *[1] * count]) for count in range(4)] == [1, 1, 2, 2]
