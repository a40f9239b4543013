"""Replies with drafts and without, and how they are the same, for tests of drafts."""

from __future__ import annotations

from typing import Any

import pytest

from rrt_edge.runtime import Sampling, Token

FREE = {1: -100.0}  # nothing ends a reply but its length
PROMPT = [5, 6, 7]
KINDS = {
    "greedy": Sampling(max_tokens=50, logit_bias=FREE),
    "sampled": Sampling(max_tokens=50, temperature=0.9, seed=3, logit_bias=FREE, logprobs=2),
    "narrow": Sampling(max_tokens=50, temperature=0.7, top_k=5, top_p=0.9, min_p=0.05, seed=4, logit_bias=FREE),
    "penalties": Sampling(
        max_tokens=50, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.5, logit_bias=FREE
    ),
    "short": Sampling(max_tokens=1),
    "ends": Sampling(max_tokens=90, temperature=1.5, seed=8, min_tokens=4),
    "stops": Sampling(max_tokens=90, temperature=1.0, seed=5, stop=("e",), logit_bias=FREE),
}


def said(tokens: Any) -> list[tuple[Any, ...]]:
    return [(token.id, token.depth, token.text) for token in tokens]


def same(ours: list[Token], theirs: list[Token]) -> None:
    assert said(ours) == said(theirs)
    for token, other in zip(ours, theirs, strict=True):
        assert token.gate == pytest.approx(other.gate, abs=1e-5)
        assert (token.logprob is None) == (other.logprob is None)
        if token.logprob is not None:
            assert token.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [id for id, _ in token.top_logprobs] == [id for id, _ in other.top_logprobs]
