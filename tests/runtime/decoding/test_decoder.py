"""Exact early exit: whatever tokens leave where, logits equal one ordinary forward of the final text."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import ExitPolicy, Model, Sampling
from rrt_edge.runtime.decoding import decoder as decoder_module
from rrt_edge.runtime.decoding import prompt_chunks
from rrt_edge.runtime.decoding.decoder import Decoder


def depth_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """[depths, S, V] of one forward of the whole text."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat(model(torch.tensor([ids]), output_depths=True).depth_logits).numpy()


@pytest.mark.slow
@pytest.mark.parametrize("loops", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_each_logit_is_its_depths_logit_of_the_final_text(
    make_recursive: Callable[..., Path], tmp_path: Path, loops: int, seed: int
) -> None:
    from rrt_edge.exporters import export

    folder = make_recursive(loops=loops, rank=0 if loops == 1 else 4)
    export(folder, tmp_path / "bundle", bits=32)
    rng = np.random.default_rng(seed)
    ids = rng.integers(2, 300, 150).tolist()
    expected = depth_logits(folder, ids)
    with Model.load(tmp_path / "bundle") as model:
        decoder = Decoder(model._loaded.runner)
        prompt = int(rng.integers(1, 12))
        decoder.prefill(ids[:prompt], ExitPolicy())
        depths = []
        for position in range(prompt, len(ids)):
            policy = [ExitPolicy(threshold=0.5), ExitPolicy(depth=int(rng.integers(1, loops + 1))), ExitPolicy()]
            step = decoder.step(ids[position], policy[rng.choice(3, p=[0.45, 0.45, 0.1])])
            depths.append(step.depth)
            np.testing.assert_allclose(step.logits, expected[step.depth - 1, position], atol=1e-4)
    assert set(depths) == set(range(1, loops + 1))


def test_every_row_runs_each_depth_once_in_the_end(bundle: Path) -> None:
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        for token in range(2, 40):
            decoder.step(token, ExitPolicy(depth=1 + token % 2))
        assert decoder.state.cache.lengths[0] == 38 and decoder.state.cache.lengths[2] == 0
        decoder.step(50, ExitPolicy())
        assert decoder.state.cache.lengths == [39, 39, 39]
        assert [len(rows) for rows in decoder.state.waiting] == [0, 0]
        assert decoder.block_rows == 3 * 39


def test_leaving_early_saves_the_rows_it_says(bundle: Path) -> None:
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        for token in range(2, 22):
            assert decoder.step(token, ExitPolicy(threshold=0.0)).depth == 1
        assert decoder.block_rows == 20


def test_long_waits_are_caught_up_in_chunks(bundle: Path, recursive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_chunks, "CHUNK", 8)
    ids = np.random.default_rng(0).integers(2, 300, 61).tolist()
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        decoder.prefill(ids[:20], ExitPolicy(depth=2))
        for token in ids[20:60]:
            decoder.step(token, ExitPolicy(depth=1))
        step = decoder.step(ids[60], ExitPolicy())
    np.testing.assert_allclose(step.logits, depth_logits(recursive, ids)[2, 60], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("keep", [0, 1, 7, 15, 19])
def test_rewinding_forgets_exactly_what_is_behind(bundle: Path, recursive: Path, keep: int) -> None:
    rng = np.random.default_rng(keep)
    first, second = rng.integers(2, 300, (2, 20)).tolist()
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        for index, token in enumerate(first):
            decoder.step(token, ExitPolicy(depth=1 + index % 3 if index < 12 else 1))
        decoder.rewind(keep)
        ids = first[:keep] + second
        for token in second[:-1]:
            decoder.step(token, ExitPolicy(threshold=0.5))
        step = decoder.step(second[-1], ExitPolicy())
    np.testing.assert_allclose(step.logits, depth_logits(recursive, ids)[2, -1], atol=1e-4)


def test_an_interrupted_step_leaves_a_decoder_that_starts_anew(
    bundle: Path, recursive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [5, 9, 30, 41]
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        decoder.prefill(ids, ExitPolicy(depth=1))
        run = Decoder._run
        calls = iter([True, False])
        monkeypatch.setattr(Decoder, "_run", lambda self, *a: run(self, *a) if next(calls) else interrupt())
        with pytest.raises(KeyboardInterrupt):
            decoder.step(7, ExitPolicy())
        monkeypatch.setattr(Decoder, "_run", run)
        assert decoder.length == 0
        decoder.prefill(ids, ExitPolicy())
        step = decoder.step(7, ExitPolicy())
    np.testing.assert_allclose(step.logits, depth_logits(recursive, [*ids, 7])[2, -1], atol=1e-4)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_generated_tokens_wait_no_longer_than_the_limit(
    bundle: Path, recursive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoder_module, "MOST_WAITING", 5)
    ids = np.random.default_rng(0).integers(2, 300, 41).tolist()
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        decoder.prefill(ids[:20], ExitPolicy(), lazy=True)
        longest = 0
        for token in ids[20:40]:
            decoder.step(token, ExitPolicy(threshold=0.0))
            longest = max(longest, *(decoder._generated_waiting(depth) for depth in (1, 2)))
        assert longest == 5 and decoder.state.cache.lengths[0] == 40
        step = decoder.step(ids[40], ExitPolicy())
    np.testing.assert_allclose(step.logits, depth_logits(recursive, ids)[2, 40], atol=1e-4)


def test_a_lazy_prompt_runs_deeper_only_for_a_deeper_token(bundle: Path, recursive: Path) -> None:
    ids = np.random.default_rng(1).integers(2, 300, 30).tolist()
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        decoder.prefill(ids[:28], ExitPolicy(), lazy=True)
        assert decoder.state.cache.lengths == [28, 0, 0] and decoder.block_rows == 28
        shallow = decoder.step(ids[28], ExitPolicy(threshold=0.0))
        deep = decoder.step(ids[29], ExitPolicy())
        assert decoder.state.cache.lengths == [30, 30, 30]
    np.testing.assert_allclose(shallow.logits, depth_logits(recursive, ids)[0, 28], atol=1e-4)
    np.testing.assert_allclose(deep.logits, depth_logits(recursive, ids)[2, 29], atol=1e-4)


@pytest.mark.slow
def test_a_lazy_session_gives_the_eager_ones_tokens(bundle: Path) -> None:
    prompt = np.random.default_rng(2).integers(2, 300, 60).tolist()
    with Model.load(bundle) as model:
        for policy in ("threshold=0.5", "full", "depth=2"):
            eager, lazy = model.session(lazy_prompt=False), model.session(lazy_prompt=True)
            sampling = Sampling(max_tokens=20)
            ours = [(token.id, token.depth) for token in lazy.stream(prompt, sampling, policy)]
            theirs = [(token.id, token.depth) for token in eager.stream(prompt, sampling, policy)]
            assert ours == theirs
            assert lazy.stats.longest_gap_s > 0


def test_scores_over_a_long_past_are_bounded(bundle: Path, recursive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer rows a call where the past is long; the logits stay those of one forward."""
    monkeypatch.setattr(prompt_chunks, "SCORES_BYTES", 100 * 6 * 4 * 64)
    monkeypatch.setattr(prompt_chunks, "CHUNK", 64)
    ids = np.random.default_rng(4).integers(2, 300, 400).tolist()
    with Model.load(bundle) as model:
        decoder, rows = Decoder(model._loaded.runner), []
        run = decoder._run
        monkeypatch.setattr(decoder, "_run", lambda moving, *rest: rows.append(len(moving)) or run(moving, *rest))
        decoder.prefill(ids[:-1], ExitPolicy())
        step = decoder.step(ids[-1], ExitPolicy())
    assert rows[0] == 64 and rows == sorted(rows, reverse=True) and 10 <= rows[-3] < 20
    np.testing.assert_allclose(step.logits, depth_logits(recursive, ids)[2, -1], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("calibrated", [None, 0.9])
def test_prompts_are_lazy_by_default_where_the_threshold_is_calibrated(bundle: Path, calibrated: float | None) -> None:
    with Model.load(bundle) as model:
        gate = dataclasses.replace(model.manifest.gate, threshold=calibrated)
        model._loaded.manifest = dataclasses.replace(model.manifest, gate=gate)
        for policy, lazy in (("threshold=0", calibrated is not None), ("full", False)):
            session = model.session()
            list(session.stream(list(range(5, 25)), Sampling(max_tokens=1), policy))
            assert (session._decoder.state.cache.lengths[2] == 0) == lazy
