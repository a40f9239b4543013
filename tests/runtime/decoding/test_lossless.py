"""Lossless mode: full depth's tokens when greedy, its distribution when sampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import BadInputError, Model, Sampling
from rrt_edge.runtime.decoding import lossless as lossless_module
from rrt_edge.runtime.decoding.logits import distribution
from rrt_edge.runtime.decoding.lossless import DraftLength
from rrt_edge.runtime.decoding.sampler import Draft, Sampler


@pytest.fixture(autouse=True)
def always_draft(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models: nearly every draft is rejected, so that the controller would soon stop drafting."""
    lengths = np.random.default_rng(0)
    monkeypatch.setattr(DraftLength, "choose", lambda self: int(lengths.integers(1, 9)))


@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("least_gate", [0.0, 0.5])
def test_greedy_tokens_are_full_depths(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, least_gate: float, penalty: float
) -> None:
    monkeypatch.setattr(lossless_module, "LEAST_SURE", least_gate)
    with Model.load(bundle) as model:
        monkeypatch.setattr(type(model.manifest.gate), "trained", True, raising=False)
        drafted = 0
        for seed in range(6):
            prompt = np.random.default_rng(seed).integers(2, 300, 8).tolist()
            sampling = Sampling(max_tokens=60, repetition_penalty=penalty)
            ours = model.generate(prompt, sampling, "lossless")
            theirs = model.generate(prompt, sampling, "full")
            assert [token.id for token in ours.tokens] == [token.id for token in theirs.tokens]
            assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
            assert ours.stats.accepted == sum(token.depth == 1 for token in ours.tokens)
            drafted += ours.stats.drafted
        assert drafted > 100


def test_a_conversation_goes_on_behind_rejected_drafts(bundle: Path) -> None:
    with Model.load(bundle) as model:
        session = model.session()
        ids = [5, 6, 7]
        for policy in ("lossless", "threshold=0.5", "lossless", "full"):
            tokens = list(session.stream(ids, Sampling(max_tokens=11), policy))
            fresh = list(model.stream(ids, Sampling(max_tokens=11), policy))
            assert [token.id for token in tokens] == [token.id for token in fresh]
            ids += [token.id for token in tokens] + [40, 41]


def test_stopping_early_keeps_what_was_read(bundle: Path) -> None:
    with Model.load(bundle) as model:
        session = model.session()
        stream = session.stream([5, 6, 7], Sampling(max_tokens=50), "lossless")
        read = [next(stream).id for _ in range(4)]
        stream.close()
        assert session.ids == [5, 6, 7, *read][: len(session.ids)] and session.decoder.length == len(session.ids)
        again = [token.id for token in session.stream([5, 6, 7, *read], Sampling(max_tokens=9), "full")]
        assert again == [token.id for token in model.stream([5, 6, 7, *read], Sampling(max_tokens=9), "full")]


@pytest.mark.slow
def test_sampled_tokens_have_full_depths_distribution() -> None:
    """Chi-square at the 0.1 % level: judged drafts against the target distribution, on a vocabulary of 8."""
    rng = np.random.default_rng(3)
    shallow, deep = rng.normal(size=8).astype(np.float32) * 2, rng.normal(size=8).astype(np.float32) * 2
    sampling = Sampling(temperature=0.9, seed=5, top_k=7)
    sampler, count = Sampler(sampling), 20_000
    drafts = [sampler.propose(shallow, []) for _ in range(count)]
    picked = np.bincount([sampler.judge(draft, deep, []) for draft in drafts], minlength=8)
    wanted = distribution(deep, sampling) * count
    assert picked[wanted == 0].sum() == 0
    kept = wanted > 0
    chi_square = ((picked[kept] - wanted[kept]) ** 2 / wanted[kept]).sum()
    assert chi_square < 22.46  # 6 degrees of freedom
    assert 0 < sum(draft.token == 0 for draft in drafts) < count  # the drafts come from elsewhere
    drawn = np.bincount([draft.token for draft in drafts], minlength=8)
    assert ((drawn[kept] - wanted[kept]) ** 2 / wanted[kept]).sum() > 1000


@pytest.mark.slow
def test_sampled_replies_have_full_depths_distribution(bundle: Path) -> None:
    """The second token of many replies, lossless against full depth: two-sample chi-square at the 0.1 % level."""
    with Model.load(bundle) as model:
        counts = np.zeros((2, model.manifest.architecture.vocabulary))
        for row, policy in enumerate(("lossless", "full")):
            session = model.session()
            for seed in range(400):
                sampling = Sampling(temperature=0.8, top_k=3, seed=1000 * row + seed, max_tokens=2)
                counts[row, list(session.stream([5, 6, 7], sampling, policy))[-1].id] += 1
    seen = counts[:, counts.sum(axis=0) >= 10]
    expected = seen.sum(axis=0) / 2
    chi_square = ((seen - expected) ** 2 / expected).sum()
    degrees = seen.shape[1] - 1
    assert chi_square < degrees + 3.1 * np.sqrt(2 * degrees) + 6


def test_a_rejected_drafts_probability_moves_elsewhere() -> None:
    sampler = Sampler(Sampling(temperature=1.0, seed=0))
    draft = Draft(2, np.array([0.0, 0.0, 1.0]))
    logits = np.log(np.array([0.25, 0.75, 1e-30], np.float32))
    picked = [sampler.judge(draft, logits, []) for _ in range(2000)]
    assert 2 not in picked and 0.2 < np.mean(np.array(picked) == 0) < 0.3


def test_lossless_needs_the_exact_rule(bundle: Path) -> None:
    with Model.load(bundle) as model, pytest.raises(BadInputError, match="lossless goes with the KV rule exact"):
        model.session(kv_rule="skip").stream([5], None, "lossless")


def test_lengths_grow_with_acceptance_and_drafting_stops_where_it_loses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def settle(acceptance: float, seconds: dict[int, float]) -> int:
        rng, control = np.random.default_rng(1), DraftLength(loops=2)
        for _ in range(400):
            rows = control.choose()
            stood = 0
            while stood < rows - 1 and rng.random() < acceptance:
                stood += 1
            control.observe(rows, rows - 1, stood, seconds[rows])
        return max(range(1, 9), key=control._tokens_per_second)

    cheap = {rows: 0.5 * rows + 0.5 * (1 + 0.1 * (rows - 1)) for rows in range(1, 10)}
    dear = {rows: 1.6 * rows - 0.6 for rows in range(1, 10)}
    assert settle(0.95, cheap) >= 4
    assert settle(0.95, dear) == 1
    assert settle(0.1, cheap) == 1
