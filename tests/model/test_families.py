"""Every family: conversion at full rank, each depth with vectors of its own, is the source."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from tests.families import CASES, random_model

IDS = torch.randint(2, 300, (2, 19), generator=torch.Generator().manual_seed(7))  # past the sliding windows


@pytest.mark.slow
@pytest.mark.parametrize("loops", [2, 3])
@pytest.mark.parametrize("case", CASES)
def test_full_rank_is_the_source(case: str, loops: int, tmp_path: Path) -> None:
    theirs = random_model(case)
    theirs.save_pretrained(tmp_path / "source")
    rrt_edge.convert(tmp_path / "source", tmp_path / "out", loops=loops, rank=10_000, own_vectors=True)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)
        options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
        assert torch.equal(ours.generate(IDS, **options), ours.generate(IDS, **options, use_cache=False))
