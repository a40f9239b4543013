"""The KV rules against torch: one forward of the final text, the tokens that left early seen by the rule."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from rrt_edge.exporters import export
from rrt_edge.runtime import Engine, ExitPolicy, Model, Sampling
from rrt_edge.runtime.bundle.kv_rules import KV_RULES
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.sampler import Sampler

RULES = ["exact", "latest", "skip", "propagate"]


def depth_logits(folder: Path, rule: str, texts: list[list[int]], exits: list[list[int]]) -> np.ndarray:
    """[depths, B, S, V] of one forward of the padded texts."""
    longest = max(map(len, texts))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.kv_rule = rule
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in texts])
    left = torch.tensor([depths + [1] * (longest - len(depths)) for depths in exits])
    valid = torch.tensor([[index < len(ids) for index in range(longest)] for ids in texts])
    with torch.no_grad():
        out = model(padded, attention_mask=valid.long(), exit_depths=left, output_depths=True)
    return torch.stack(out.depth_logits).numpy()


@pytest.fixture(scope="module")
def bundles(
    make_recursive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, bool], tuple[Path, Path]]:
    """By loops and whether the graph propagates: checkpoint and float32 bundle."""
    made = {}
    for loops in (2, 3, 4):
        folder = make_recursive(loops=loops, rank=4)
        for propagates in (False, True):
            model = AutoModelForCausalLM.from_pretrained(folder)
            model.config.kv_rule = "propagate" if propagates else "exact"
            model.save_pretrained(folder)
            bundle = tmp_path_factory.mktemp("bundle") / "bundle"
            export(folder, bundle, bits=32)
            made[loops, propagates] = folder, bundle
    return made


GRAPHS = [*((rule, False) for rule in RULES[:3]), *((rule, True) for rule in RULES)]


@pytest.mark.parametrize("loops", [2, 3, 4])
@pytest.mark.parametrize(("rule", "propagates"), GRAPHS)
def test_each_logit_is_torchs_under_the_rule(
    bundles: dict[tuple[int, bool], tuple[Path, Path]], rule: str, propagates: bool, loops: int
) -> None:
    folder, bundle = bundles[loops, propagates]
    rng = np.random.default_rng(loops)
    ids = rng.integers(2, 300, 90).tolist()
    depths = [loops] * 20 + rng.integers(1, loops + 1, 70).tolist()
    expected = depth_logits(folder, rule, [ids], [depths])
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner, KV_RULES[rule])
        decoder.prefill(ids[:20], ExitPolicy())
        for position in range(20, 90):
            step = decoder.step(ids[position], ExitPolicy(depth=depths[position]))
            np.testing.assert_allclose(step.logits, expected[depths[position] - 1, 0, position], atol=1e-4)
            if position == 60:  # what is rewound is as if it had not been
                for token in (9, 8, 7):
                    decoder.step(token, ExitPolicy(depth=1 + token % loops))
                decoder.rewind(61)
        if rule == "skip":
            assert decoder.state.cache.lengths == [sum(own >= d for own in depths) for d in range(1, loops + 1)]
            assert decoder.block_rows == sum(depths) + sum(1 + token % loops for token in (9, 8, 7))


@pytest.mark.parametrize("loops", [2, 3, 4])
@pytest.mark.parametrize(("rule", "propagates"), GRAPHS)
def test_a_batch_in_the_engine_is_torchs_batch(
    bundles: dict[tuple[int, bool], tuple[Path, Path]],
    rule: str,
    propagates: bool,
    loops: int,
    picked: dict[int, list[np.ndarray]],
) -> None:
    folder, bundle = bundles[loops, propagates]
    rng = np.random.default_rng(10 + loops)
    with Model.load(bundle) as model:
        engine = Engine(model, kv_rule=rule, prompt_rows=7)
        requests = []
        for length in (3, 19, 8, 30):
            prompt = rng.integers(2, 300, length).tolist()
            policy = ExitPolicy(trace=tuple(rng.integers(1, loops + 1, 25).tolist()))
            requests.append(
                (prompt, policy, engine.submit(prompt, Sampling(max_tokens=25, temperature=2.0, seed=length), policy))
            )
        list(engine.run())
    texts = [prompt + [token.id for token in request.tokens] for prompt, _, request in requests]
    exits = [
        [loops] * (len(prompt) - 1) + [token.depth for token in request.tokens] + [loops]
        for prompt, _, request in requests
    ]
    expected = depth_logits(folder, rule, texts, exits)
    assert {token.depth for _, _, request in requests for token in request.tokens} == set(range(1, loops + 1))
    for index, (prompt, _, request) in enumerate(requests):
        for place, (token, logits) in enumerate(zip(request.tokens, picked[id(request._reply.sampler)], strict=True)):
            np.testing.assert_allclose(logits, expected[token.depth - 1, index, len(prompt) - 1 + place], atol=1e-4)


@pytest.mark.parametrize("rule", RULES)
def test_tokens_that_leave_for_long_are_caught_up_in_parts(
    bundles: dict[tuple[int, bool], tuple[Path, Path]], rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rrt_edge.runtime.decoding.prompt_chunks.CHUNK", 12)
    monkeypatch.setattr("rrt_edge.runtime.decoding.request.PART_ROWS", 9)
    folder, bundle = bundles[3, True]
    ids = np.random.default_rng(1).integers(2, 300, 60).tolist()
    depths = [3] * 5 + [1] * 24 + [2] * 2 + [1] * 20 + [3, 1, 2, 2, 2, 2, 2, 2, 3]
    expected = {name: depth_logits(folder, name, [ids], [depths])[2, 0, -1] for name in RULES}
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner, KV_RULES[rule])
        decoder.prefill(ids[:5], ExitPolicy())
        logits = [decoder.step(ids[at], ExitPolicy(depth=depths[at])).logits for at in range(5, 60)][-1]
        policy = ExitPolicy(trace=tuple(depths[4:]))
        engine = Engine(model, kv_rule=rule)
        seen: list[np.ndarray] = []
        forced = iter(ids[5:])

        def pick(self: Sampler, logits: np.ndarray, history: list[int]) -> int:
            seen.append(logits)
            return next(forced, 7)

        monkeypatch.setattr(Sampler, "pick", pick)
        engine.submit(ids[:5], Sampling(max_tokens=56), policy)
        list(engine.run())
    for name, wanted in expected.items():
        near = [bool(np.abs(found - wanted).max() < 1e-4) for found in (logits, seen[-1])]
        assert near == [name == rule] * 2, name


@pytest.mark.parametrize("rule", RULES[1:])
def test_the_rule_travels_in_the_manifest(make_recursive: Callable[..., Path], tmp_path: Path, rule: str) -> None:
    folder = make_recursive(loops=2, rank=2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.kv_rule = rule
    model.save_pretrained(folder)
    export(folder, tmp_path / "bundle", bits=32)
    with Model.load(tmp_path / "bundle") as loaded:
        assert loaded.manifest.kv_rule == rule
        assert loaded.session()._decoder.state.rule.name == rule
        assert loaded.session(kv_rule="exact").kv_rule == "exact"
