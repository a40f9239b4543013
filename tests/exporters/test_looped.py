"""Looped models of others, from their checkpoint to the runtime, against their formulas in plain torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch")

import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import export, verify
from rrt_edge.runtime import BadInputError, Engine, Model
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.running.block import BlockBinding
from rrt_edge.runtime.running.cpu_cache import KVCache
from rrt_edge.runtime.running.runner import Call
from tests.looped import KINDS, reference, write_looped

NEAR = 1e-4
THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
PAIRS = [(one, two) for one in ("cat", "dog", "fox") for two in ("hen", "cat", "ox")]
TEXT = [int(token) for token in np.random.default_rng(0).integers(2, 300, 700)]  # more than one chunk


@pytest.fixture(scope="module", params=KINDS)
def looped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_looped(tmp_path_factory.mktemp("looped") / request.param, request.param)


@pytest.fixture(scope="module")
def bundle(looped: Path) -> Path:
    folder = looped.with_name(f"{looped.name}-bundle")
    export(looped, folder, bits=32)
    return folder


@pytest.fixture(scope="module")
def ouro(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    source = write_looped(tmp_path_factory.mktemp("ouro") / "source", "ouro")
    export(source, source.with_name("bundle"), bits=32)
    return source, source.with_name("bundle")


def test_the_imported_model_is_the_source_at_every_loop(looped: Path, tmp_path: Path) -> None:
    report = rrt_edge.convert(looped, tmp_path / "recursive")
    logits, left = reference(looped, TEXT[:40])
    assert (report.loops, report.rank, report.layers_per_block) == (len(logits), 0, 3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "recursive")
    model.save_pretrained(tmp_path / "again")
    for folder in ("recursive", "again"):
        model = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        with torch.no_grad():
            out = model(torch.tensor([TEXT[:40]]), output_depths=True)
        assert (
            max(float((ours[0] - own).abs().max()) for ours, own in zip(out.depth_logits, logits, strict=True)) < NEAR
        )
        assert (out.gate_logits is None) == (not looped.name.startswith("ouro"))
        if out.gate_logits is not None:
            assert float((torch.sigmoid(out.gate_logits[0]).T - left[:-1]).abs().max()) < 1e-6


def test_the_bundle_is_the_source_at_every_loop(looped: Path, bundle: Path) -> None:
    """Text in chunks, depth by depth and all in one call."""
    logits, left = reference(looped, TEXT)
    loops = len(logits)
    with Model.load(bundle) as model:
        cache, whole = KVCache(model.manifest.architecture), KVCache(model.manifest.architecture)
        binding, other = model._loaded.runner.bind(), model._loaded.runner.bind()
        for start in range(0, len(TEXT), 512):
            ids = np.array(TEXT[start : start + 512])
            rows, stayed, asked = ids, np.ones(len(ids), np.float32), tuple(range(len(ids)))
            for depth in range(1, loops + 1):
                call = Call(rows, start, depth, depth, logit_rows=asked, stayed=stayed)
                done = model._loaded.runner.run(binding, cache, call)
                rows, stayed = done.hidden, 1 - done.gate
                expected = logits[depth - 1, start : start + 512].numpy()
                assert np.abs(done.logits - expected).max() < NEAR
                assert np.abs(done.gate - left[depth - 1, start : start + 512].numpy()).max() < NEAR
            done = model._loaded.runner.run(other, whole, Call(ids, start, 1, loops, logit_rows=asked))
            assert np.abs(done.logits - logits[-1, start : start + 512].numpy()).max() < NEAR


@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_tokens_leave_where_the_formula_says_and_full_depth_goes_on_from_them(
    ouro: tuple[Path, Path], threshold: float
) -> None:
    source, bundle = ouro
    logits, left = reference(source, TEXT[:60])
    expected = (left >= threshold).float().argmax(0) + 1
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner)
        depths = []
        for position, token in enumerate(TEXT[:50]):
            step = decoder.step(token, ExitPolicy(threshold=threshold))
            depths.append(step.depth)
            assert np.abs(step.logits - logits[step.depth - 1, position].numpy()).max() < NEAR
            assert abs(step.gate - float(left[step.depth - 1, position])) < NEAR
        assert depths == expected[:50].tolist()
        assert len(set(depths)) > 1
        for position, token in enumerate(TEXT[50:60], 50):
            step = decoder.step(token, ExitPolicy())
            assert np.abs(step.logits - logits[-1, position].numpy()).max() < NEAR


def test_four_requests_at_mixed_depths_get_what_they_get_alone(ouro: tuple[Path, Path]) -> None:
    _, bundle = ouro
    prompts = [TEXT[start : start + 9] for start in (0, 20, 40, 60)]
    with Model.load(bundle) as model:
        sampling = model.sampling(max_tokens=24, min_tokens=24)
        alone = [
            [(token.id, token.depth) for token in model.generate(prompt, sampling, f"threshold={threshold}").tokens]
            for prompt, threshold in zip(prompts, THRESHOLDS, strict=True)
        ]
        engine = Engine(model)
        requests = [
            engine.submit(prompt, sampling, f"threshold={threshold}")
            for prompt, threshold in zip(prompts, THRESHOLDS, strict=True)
        ]
        list(engine.run())
    assert [[(token.id, token.depth) for token in request.tokens] for request in requests] == alone
    assert len({depth for reply in alone for _, depth in reply}) > 2


def test_drafts_come_from_the_second_loop_and_full_depths_tokens_stand(
    ouro: tuple[Path, Path], always_draft: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the rows of a token and its draft, two loops apart, read the weights together."""
    _, bundle = ouro
    together, run = [], BlockBinding.run

    def counted(self: Any, parts: Any, planes: Any) -> Any:
        together.append([part.depth for part in parts])
        return run(self, parts, planes)

    monkeypatch.setattr(BlockBinding, "run", counted)
    with Model.load(bundle) as model, Model.load(bundle, reproducible=True) as plain:
        for policy in ("full", "depth=3"):
            sampling = model.sampling(max_tokens=64, min_tokens=64)
            drafted, full = (each.generate(TEXT[:9], sampling, policy) for each in (model, plain))
            assert [(token.id, token.depth) for token in drafted.tokens] == [(t.id, t.depth) for t in full.tokens]
            gates = [[token.gate for token in reply.tokens] for reply in (drafted, full)]
            np.testing.assert_allclose(*gates, atol=NEAR)
            assert drafted.stats.drafted > 60 and full.stats.drafted == 0
        assert together.count([1, 3]) > 30 and together.count([2, 4]) > 30
        state, pipeline = model.session()._decoder.state, model._loaded.pipeline
        assert pipeline(state, model.policy("full")) is not None and pipeline(state, model.policy("depth=2")) is None


def test_a_model_without_a_gate_is_read_after_its_last_loop_alone(tmp_path: Path) -> None:
    export(write_looped(tmp_path / "source", "nanbeige"), tmp_path / "bundle", bits=8)
    with Model.load(tmp_path / "bundle") as model:
        assert model.generate(TEXT[:9], model.sampling(max_tokens=3)).tokens[0].depth == 2
        for policy in ("threshold=0.5", "mean-depth=1.5", "ms-per-token=5", ExitPolicy(threshold=0.5)):
            with pytest.raises(BadInputError, match="no exit gate"):
                model.generate(TEXT[:9], exit_policy=policy)
        for policy in ("depth=1", ExitPolicy(depth=1)):
            with pytest.raises(BadInputError, match="after loop 2 alone"):
                model.generate(TEXT[:9], exit_policy=policy)
        assert model.generate(TEXT[:9], model.sampling(max_tokens=9)).stats.drafted == 0


def test_bundles_prove_themselves_against_their_source(looped: Path, bundle: Path) -> None:
    report = verify(bundle, source=looped)
    assert report.ok
    assert len(report.depths) == (4 if looped.name.startswith("ouro") else 2)


def test_blocks_have_8_bits_unless_one_asks(ouro: tuple[Path, Path], tmp_path: Path) -> None:
    source, _ = ouro
    assert export(source, tmp_path / "eight").bits == 8
    assert export(source, tmp_path / "four", bits=4).bits == 4
    losses = [verify(tmp_path / bits, source=source).depths[-1].kl for bits in ("eight", "four")]
    assert losses[0] < 0.1 * losses[1]


@pytest.mark.parametrize("repair_rank", [0, 8])
def test_rounding_with_data_runs_the_norm_between_the_loops(looped: Path, tmp_path: Path, repair_rank: int) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"The {one} eats the {two}. " * 9}) + "\n" for one, two in PAIRS))
    exact = export(looped, tmp_path / "exact", bits=8, data=data)
    report = export(looped, tmp_path / "bundle", bits=4, data=data, repair_rank=repair_rank)
    assert exact.cost is not None and report.cost is not None
    assert all(depth.kl < 1e-3 for depth in exact.cost.depths)  # which would be large were the norm elsewhere
    nearest = verify_cost(export(looped, tmp_path / "nearest", bits=4).bundle, looped, data)
    with_data = verify_cost(report.bundle, looped, data)
    assert with_data < 0.8 * nearest


def verify_cost(bundle: str, source: Path, data: Path) -> float:
    """KL at the last depth on texts like those of the data."""
    text = data.with_suffix(".txt")
    text.write_text("".join(json.loads(line)["text"] + "\n" for line in data.read_text().splitlines() * 4))
    return verify(bundle, source=source, text=text).depths[-1].kl


def test_chats_end_at_the_tokenizers_own_end(ouro: tuple[Path, Path]) -> None:
    """Ouro's config names token 0, which ends no chat."""
    _, bundle = ouro
    with Model.load(bundle) as model:
        assert 1 in model.manifest.eos_token_ids
        stream = model.chat([{"role": "user", "content": "The cat"}], model.sampling(logit_bias={1: 100.0}))
        assert len(list(stream)) == 1
    assert stream.generation.finish_reason == "stop"
