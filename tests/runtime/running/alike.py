"""What two runners of one model say, compared token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rrt_edge.runtime.bundle.kv_rules import KV_RULES
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.running.runner import NEVER, AnyRunner


def tokens(seed: int, count: int) -> list[int]:
    return np.random.default_rng(seed).integers(2, 300, count).tolist()


def assert_alike(ours: AnyRunner, theirs: AnyRunner, rule: str, count: int) -> None:
    """A prompt, then `count` tokens, some of which leave early by their gate, or take waiting rows along."""
    decoders = [Decoder[Any, Any](runner, KV_RULES[rule]) for runner in (ours, theirs)]
    ids = tokens(1, 40 + count)
    for decoder in decoders:
        decoder.prefill(ids[:40], ExitPolicy())
    random = np.random.default_rng(2)
    depths = set()
    for token in ids[40:]:
        policy = ExitPolicy(threshold=float(random.choice([0.3, 0.5, 0.6, NEVER])))
        mine, other = (decoder.step(token, policy) for decoder in decoders)
        assert mine.depth == other.depth
        np.testing.assert_allclose(mine.logits, other.logits, atol=1e-4, rtol=1e-4)
        assert mine.gate == pytest.approx(other.gate, abs=1e-5)
        assert mine.gates == pytest.approx(other.gates, abs=1e-5)
        depths.add(mine.depth)
    assert len(depths) > 1
    assert decoders[0].state.cache.lengths == decoders[1].state.cache.lengths
