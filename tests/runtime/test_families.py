"""Families whose attention slides, whose rotary embedding differs by depth or whose norms stand elsewhere: running.

Torch is the oracle: one forward of the final text, each token leaving at the depth it left at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import export
from rrt_edge.runtime import BadInputError, Engine, ExitPolicy, Model, Sampling
from rrt_edge.runtime.bundle.kv_rules import KV_RULES
from rrt_edge.runtime.decoding.decoder import Decoder
from tests.checkpoints import save_tokenizer
from tests.families import random_model

CASES = {"mistral": 3, "qwen2-window": 3, "gemma2": 2, "gemma3": 3, "gpt_neox": 2, "phi3": 3, "olmo2": 2}
RULES = ["exact", "latest", "propagate"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Path]]:
    """Checkpoint and float32 bundle of a case, for a rule."""
    found: dict[tuple[str, bool, int], tuple[Path, Path]] = {}

    def make(case: str, rule: str, kv_bits: int = 32) -> tuple[Path, Path]:
        key = case, rule == "propagate", kv_bits
        if key not in found:
            folder = tmp_path_factory.mktemp(case)
            random_model(case).save_pretrained(folder / "source")
            save_tokenizer(folder / "source", 300)
            own = case in ("gemma3", "gpt_neox")
            rrt_edge.convert(folder / "source", folder / "recursive", loops=CASES[case], rank=4, own_vectors=own)
            model = AutoModelForCausalLM.from_pretrained(folder / "recursive")
            model.config.kv_rule = "propagate" if key[1] else "exact"
            model.save_pretrained(folder / "recursive")
            export(folder / "recursive", folder / "bundle", bits=32, kv_bits=kv_bits)
            found[key] = folder / "recursive", folder / "bundle"
        return found[key]

    return make


def depth_logits(folder: Path, rule: str, ids: list[int], exits: list[int]) -> np.ndarray:
    """[depths, S, V]."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.kv_rule = rule
    with torch.no_grad():
        out = model(torch.tensor([ids]), exit_depths=torch.tensor([exits]), output_depths=True)
    return torch.cat(out.depth_logits).numpy()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_one_sequence_far_past_its_window(made: Callable[..., tuple[Path, Path]], case: str, rule: str) -> None:
    folder, bundle = made(case, rule)
    loops = CASES[case]
    rng = np.random.default_rng(3)
    ids = rng.integers(2, 300, 330).tolist()
    exits = [loops] * 150 + rng.integers(1, loops + 1, 180).tolist()
    expected = depth_logits(folder, rule, ids, exits)
    with Model.load(bundle) as model:
        decoder = Decoder(model._loaded.runner, KV_RULES[rule])
        decoder.prefill(ids[:150], ExitPolicy())
        for position in range(150, 330):
            step = decoder.step(ids[position], ExitPolicy(depth=exits[position]))
            np.testing.assert_allclose(step.logits, expected[exits[position] - 1, position], atol=1e-4)
            if position == 240:  # what is rewound is as if it had not been
                for token in (9, 8, 7):
                    decoder.step(token, ExitPolicy(depth=1 + token % loops))
                decoder.rewind(241)
                assert decoder.length == 241
        windows = model.manifest.architecture.windows
        if windows is not None:
            for depth, row in enumerate(windows, 1):
                for group, layers in enumerate(model.manifest.architecture.kv_groups):
                    room = decoder.state.cache.buffers(depth, group)[0].shape[3]
                    assert (room < 300) == (row[layers[0]] is not None)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", CASES)
def test_a_batch_at_mixed_depths(
    made: Callable[..., tuple[Path, Path]], case: str, rule: str, picked: dict[int, list[np.ndarray]]
) -> None:
    folder, bundle = made(case, rule)
    loops = CASES[case]
    rng = np.random.default_rng(4)
    with Model.load(bundle) as model:
        engine = Engine(model, kv_rule=rule, prompt_rows=7)
        requests = []
        for length in (3, 90, 19, 30):
            prompt = rng.integers(2, 300, length).tolist()
            policy = ExitPolicy(trace=tuple(rng.integers(1, loops + 1, 40).tolist()))
            sampling = Sampling(max_tokens=40, temperature=2.0, seed=length)
            requests.append((prompt, engine.submit(prompt, sampling, policy)))
        list(engine.run())
    for prompt, request in requests:
        ids = prompt + [token.id for token in request.tokens]
        exits = [loops] * (len(prompt) - 1) + [token.depth for token in request.tokens] + [loops]
        expected = depth_logits(folder, rule, ids, exits)
        for place, (token, logits) in enumerate(zip(request.tokens, picked[id(request._reply.sampler)], strict=True)):
            np.testing.assert_allclose(logits, expected[token.depth - 1, len(prompt) - 1 + place], atol=1e-4)


@pytest.mark.parametrize("case", ["mistral", "gemma3"])
def test_conversations_fork_and_go_back_past_the_window(
    made: Callable[..., tuple[Path, Path]], case: str, always_draft: None
) -> None:
    _, bundle = made(case, "exact")
    prompt = np.random.default_rng(5).integers(2, 300, 200).tolist()
    with Model.load(bundle) as model, Model.load(bundle, reproducible=True) as plain:

        def alone(ids: list[int]) -> list[int]:
            return [token.id for token in plain.stream(ids, Sampling(max_tokens=12))]

        session = model.session()
        said = [token.id for token in session.stream(prompt, Sampling(max_tokens=40))]
        assert said == [token.id for token in plain.stream(prompt, Sampling(max_tokens=40))]
        assert session.stats.drafted > 10
        longer = prompt + said + [5]
        fork = session.fork()
        for ids in ([*longer, 6], [*longer, 7], [*prompt[:150], 9]):  # the last is more than the cache goes back over
            for one in (session, fork):
                assert [token.id for token in one.stream(ids, Sampling(max_tokens=12))] == alone(ids)
        engine = Engine(model)
        requests = [engine.submit(ids, Sampling(max_tokens=12)) for ids in ([*longer, 6], [*longer, 7], prompt[:60])]
        list(engine.run())
        later = engine.submit([*longer, 6, 8], Sampling(max_tokens=12))
        list(engine.run())
        for request in (*requests, later):
            assert [token.id for token in request.tokens] == alone(request._prompt)


def test_8_bit_caches_slide_too(made: Callable[..., tuple[Path, Path]]) -> None:
    _, bundle = made("gemma3", "exact", 8)
    ids = np.random.default_rng(6).integers(2, 300, 300).tolist()
    with Model.load(bundle) as model:
        whole, stepped = Decoder(model._loaded.runner), Decoder(model._loaded.runner)
        whole.prefill(ids[:-1], ExitPolicy())
        stepped.prefill(ids[:100], ExitPolicy())
        for token in ids[100:-1]:
            stepped.step(token, ExitPolicy())
        found = [one.step(ids[-1], ExitPolicy()).logits for one in (whole, stepped)]
    np.testing.assert_allclose(*found, atol=1e-3)


def test_skip_and_last_are_refused_where_attention_slides(made: Callable[..., tuple[Path, Path]]) -> None:
    folder, bundle = made("mistral", "exact")
    for rule in ("skip", "last"):
        with Model.load(bundle) as model, pytest.raises(BadInputError, match=f"kv-rule {rule}: does not go with this"):
            model.session(kv_rule=rule)
    with Model.load(bundle, kv_rule="auto", kv_budget_bytes=1) as model:
        assert model._loaded.rule.name == "exact"
    config = AutoModelForCausalLM.from_pretrained(folder).config.text_config
    with pytest.raises(BadInputError, match="kv_rule skip does not go with a model whose attention slides"):
        rrt_edge.RecursiveConfig(text_config=config, loops=2, kv_rule="skip")
