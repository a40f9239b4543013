"""Scores of a known text at every depth and threshold, and thresholds that keep a promise."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import BadInputError, ExitPolicy, Model
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.scoring.bundle_scores import read_examples, score_bundle
from rrt_edge.runtime.scoring.calibration import binomial_tail, calibrate, depth_costs, speed_up, tokens_needed
from rrt_edge.runtime.scoring.metrics import Scores, curve


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    turns = [{"role": "user", "content": "What does the cat see?"}, {"role": "assistant", "content": "The hen, café."}]
    records = [{"messages": turns}, {"text": "The dog eats the fox. " * 20}, {"messages": [*turns, *turns]}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def test_a_bundle_scores_as_its_checkpoint_in_torch(bundle: Path, recursive: Path, data: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rrt_edge.model.text import read_examples as read
    from rrt_edge.training.evaluation import score_checkpoint

    model = AutoModelForCausalLM.from_pretrained(recursive).eval()
    theirs = score_checkpoint(model, read(data, AutoTokenizer.from_pretrained(recursive), 200))
    with Model.load(bundle) as loaded:
        ours = score_bundle(loaded._loaded.runner, read_examples(loaded, data, 200))
    np.testing.assert_array_equal(ours.text, theirs.text)
    np.testing.assert_array_equal(ours.right, theirs.right)
    np.testing.assert_array_equal(ours.agrees, theirs.agrees)
    np.testing.assert_allclose(ours.nll, theirs.nll, atol=1e-4)
    np.testing.assert_allclose(ours.gate, theirs.gate, atol=1e-5)
    assert set(ours.text) == {0, 1, 2} and ours.agrees[-1].all()
    labels = [example["labels"][1:] for example in read(data, AutoTokenizer.from_pretrained(recursive), 200)]
    assert ours.tokens == sum(label != -100 for one in labels for label in one)


def test_a_threshold_scores_as_the_runtime_leaves(bundle: Path, data: Path) -> None:
    with Model.load(bundle) as model:
        examples = read_examples(model, data, 200)
        scores = score_bundle(model._loaded.runner, examples)
        threshold, at = 0.5, 0
        for example in examples:
            decoder = Decoder(model._loaded.runner)
            for position, token in enumerate(example.ids[:-1]):
                step = decoder.step(token, ExitPolicy(threshold=threshold))
                if example.scored[position + 1]:
                    assert scores.exits(threshold)[at] == step.depth - 1
                    assert scores.right[step.depth - 1, at] == (step.logits.argmax() == example.ids[position + 1])
                    at += 1
    assert at == scores.tokens and len(set(scores.exits(threshold))) > 1


def made(tokens: int, disagreeing: float, seed: int) -> Scores:
    """Two depths; the gate is right: its value is the probability that the first depth agrees."""
    rng = np.random.default_rng(seed)
    gate = 1 - disagreeing * 2 * rng.random(tokens).astype(np.float32)
    agrees = rng.random(tokens) < gate
    ones = np.ones(tokens, np.float32)
    both = np.stack([agrees, np.ones(tokens, np.bool_)])
    return Scores(both, both, np.stack([ones, ones]), np.stack([gate, ones]), np.arange(tokens))


def test_scores_count_what_their_names_say() -> None:
    right = np.array([[1, 0, 1, 1], [1, 1, 1, 0]], np.bool_)
    agrees = np.array([[1, 0, 1, 0], [1, 1, 1, 1]], np.bool_)
    gate = np.array([[0.9, 0.2, 0.8, 0.6], [1, 1, 1, 1]], np.float32)
    nll = np.array([[0, 1, 0, 1], [0, 0, 0, 2]], np.float32)
    scores = Scores(right, agrees, nll, gate, np.array([0, 0, 1, 1]))
    first, middle = scores.at_depth(1), scores.at_threshold(0.5)
    assert (first.accuracy, first.agreement, first.exact, first.mean_depth) == (0.75, 0.5, 0.5, 1.0)
    assert first.perplexity == pytest.approx(np.exp(0.5))
    assert (middle.accuracy, middle.agreement, middle.exact, middle.mean_depth) == (1.0, 0.75, 1.0, 1.25)
    assert scores.reliability().expected_error == pytest.approx((0.1 + 0.2 + 0.2 + 0.6) / 4)


def test_a_gate_that_is_right_is_calibrated() -> None:
    assert made(100_000, 0.3, 0).reliability().expected_error < 0.01


@pytest.mark.parametrize("successes, trials, share", [(0, 100, 0.01), (5, 1000, 0.01), (900, 20000, 0.05), (7, 7, 0.3)])
def test_the_binomial_tail_is_scipys(successes: int, trials: int, share: float) -> None:
    binom = pytest.importorskip("scipy.stats").binom
    assert binomial_tail(successes, trials, share) == pytest.approx(binom.cdf(successes, trials, share), rel=1e-9)


@pytest.mark.slow
def test_the_promise_holds_on_new_text_as_often_as_stated() -> None:
    """A threshold chosen on one draw is kept on what it was drawn from: in at least 90 % of the draws, at 90 %."""
    kept, new = 0, made(400_000, 0.2, 999)
    for seed in range(60):
        found = calibrate(made(3000, 0.2, seed), 0.9, 0.9)
        assert found.threshold is not None and found.agreement >= 0.9
        kept += new.at_threshold(found.threshold).agreement >= 0.9
    assert kept >= 54


@pytest.mark.slow
def test_lower_promises_leave_earlier_and_impossible_ones_never() -> None:
    scores = made(5000, 0.2, 1)
    depths = [calibrate(scores, agreement).mean_depth for agreement in (0.8, 0.9, 0.95, 0.99)]
    assert depths == sorted(depths) and depths[0] < 1.1 and depths[-1] > 1.5
    never = calibrate(scores, 0.9999)
    assert never.threshold is None and never.mean_depth == 2 and never.agreement == 1
    points = curve(scores)
    assert points[0].threshold == 1 and points[-1].mean_depth == 1
    with pytest.raises(BadInputError, match=r"agreement 1\.5: must be between 0 and 1"):
        calibrate(scores, 1.5)


@pytest.mark.parametrize("agreement", [0.9, 0.99, 0.999])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_tokens_a_promise_needs_are_the_fewest_that_keep_it(agreement: float, confidence: float) -> None:
    needed = tokens_needed(agreement, confidence, 0.0)
    assert needed is not None and agreement**needed <= 1 - confidence < agreement ** (needed - 1)
    with_failures = tokens_needed(agreement, confidence, (1 - agreement) / 2)
    assert with_failures is not None and with_failures > needed
    assert tokens_needed(agreement, confidence, 1 - agreement) is None
    kept, few = (calibrate(made(tokens, 0.0, 0), agreement, confidence) for tokens in (needed, needed - 1))
    assert kept.threshold is not None and kept.tokens_needed is None
    assert few.threshold is None and few.tokens_needed == needed


class Ticking:
    """A clock by which a token takes as long as is said; now and then the machine has other work."""

    def __init__(self, seconds: dict[int, float], delayed: float) -> None:
        self._seconds, self._delayed, self._random, self.now = seconds, delayed, np.random.default_rng(0), 0.0

    def step(self, depth: int) -> None:
        busy = self._random.random() < self._delayed
        self.now += self._seconds[depth] + busy * self._random.exponential(20 * self._seconds[depth])


@pytest.mark.parametrize("delayed", [0.0, 0.3, 0.9])
def test_costs_on_a_busy_machine_are_possible(bundle: Path, monkeypatch: pytest.MonkeyPatch, delayed: float) -> None:
    """A token that leaves after loop 1 of 3 costs a third of one that does not, or more, whenever clocks were read."""
    ticking = Ticking({1: 0.4, 2: 0.7, 3: 1.0}, delayed)
    run = Decoder.step

    def step(self: Decoder, token: int, policy: ExitPolicy, watch: int | None = None) -> object:
        result = run(self, token, policy, watch)
        ticking.step(policy.depth or 3)
        return result

    monkeypatch.setattr(Decoder, "step", step)
    monkeypatch.setattr(time, "perf_counter", lambda: ticking.now)
    with Model.load(bundle, device="cpu") as model:
        costs = depth_costs(model._loaded.runner, [20, 30, 40])
    assert all(depth / 3 <= cost <= 1 for depth, cost in enumerate(costs, 1)) and costs[-1] == 1
    if not delayed:
        assert costs == pytest.approx([0.4, 0.7, 1.0])
    scores = made(5000, 0.2, 1)
    both = [costs[0], costs[-1]]
    assert 1 <= speed_up(scores, 0.5, both) <= 3 and speed_up(scores, None, both) == 1


def test_operating_points_are_exit_policies(bundle: Path, tmp_path: Path) -> None:
    import dataclasses
    import shutil

    folder = Path(shutil.copytree(bundle, tmp_path / "bundle"))
    manifest = Manifest.read(folder)
    points = {"fast": 0.25, "balanced": 0.75}
    dataclasses.replace(manifest, gate=dataclasses.replace(manifest.gate, points=points)).write(folder)
    with Model.load(folder) as model:
        assert model.policy("fast") == ExitPolicy(threshold=0.25)
        with pytest.raises(BadInputError, match=r"exit policy 'slow': must be full, .* \(fast, balanced\)"):
            model.policy("slow")
    fields = json.loads((folder / "manifest.json").read_text())
    fields["gate"]["points"] = {"fast": 7}
    (folder / "manifest.json").write_text(json.dumps(fields))
    with pytest.raises(BadInputError, match=r"gate\.points must be names and thresholds between 0 and 1"):
        Model.load(folder)


def test_nothing_to_score_is_said(bundle: Path, recursive: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from rrt_edge.training.evaluation import score_checkpoint

    (tmp_path / "data.jsonl").write_text(json.dumps({"text": ""}))
    with Model.load(bundle) as model, pytest.raises(BadInputError, match="the data holds nothing to score"):
        score_bundle(model._loaded.runner, read_examples(model, tmp_path / "data.jsonl", 99))
    with pytest.raises(BadInputError, match="the data holds nothing to score"):
        score_checkpoint(AutoModelForCausalLM.from_pretrained(recursive), [])
    assert torch.is_grad_enabled()
