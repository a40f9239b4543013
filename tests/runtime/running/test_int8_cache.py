"""Keys and values kept at 8 bits: torch with the same rounding is the oracle; no result depends on the calls."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from rrt_edge.exporters import export, verify
from rrt_edge.runtime import Engine, ExitPolicy, Manifest, Model, Sampling
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.running.cpu_cache import KVCache
from rrt_edge.runtime.running.runner import Call, Part
from tests.manifests import edit_manifest


class RoundingCache(DynamicCache):
    """transformers' cache, each row of a head rounded to 255 steps between its largest number and minus that."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().update(_rounded(key_states), _rounded(value_states), *args, **kwargs)


def _rounded(states: torch.Tensor) -> torch.Tensor:
    scale = states.abs().amax(-1, keepdim=True) / 127
    return torch.round(states / scale) * scale


def torch_logits(folder: Path, ids: list[int]) -> np.ndarray:
    """[depths, S, V] of one forward through a rounding cache."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    cache = RoundingCache(config=model.config)
    with torch.no_grad():
        out = model(torch.tensor([ids]), past_key_values=cache, use_cache=True, output_depths=True)
    return torch.cat(out.depth_logits).numpy()


@pytest.mark.parametrize("loops", [2, 3])
def test_every_depth_is_torchs_with_the_same_rounding(
    make_recursive: Callable[..., Path], tmp_path: Path, loops: int
) -> None:
    folder = make_recursive(loops=loops, rank=4)
    export(folder, tmp_path / "bundle", bits=32, kv_bits=8)
    ids = np.random.default_rng(3).integers(2, 300, 40)
    expected = torch_logits(folder, ids.tolist())
    with Model.load(tmp_path / "bundle") as model:
        graph, binding = model._loaded.runner, model._loaded.runner.bind()
        for depth in range(1, loops + 1):
            cache, seen = KVCache(model.manifest.architecture), []
            for start, stop in [(0, 17), (17, 18), (18, 19), (19, 40)]:
                rows = list(range(stop - start))
                done = graph.run(binding, cache, Call(ids[start:stop], start, 1, depth, logit_rows=rows))
                seen.append(done.logits)
            np.testing.assert_allclose(np.concatenate(seen), expected[depth - 1], atol=1e-4)
        stepped, rows = KVCache(model.manifest.architecture), ids
        for depth in range(1, loops + 1):
            (step,) = graph.step(binding, [Part(stepped, depth, rows, 0, np.zeros(40, np.float32))])
            np.testing.assert_allclose(step.logits, expected[depth - 1], atol=1e-4)
            rows = step.hidden


def test_a_row_takes_a_byte_a_number_and_a_scale(make_bundle: Callable[..., Path]) -> None:
    with Model.load(make_bundle(kv_bits=8)) as model:
        decoder = Decoder(model._loaded.runner)
        decoder.prefill(list(range(2, 60)), ExitPolicy())
        planes = decoder.state.cache.buffers(3)
        assert [plane.dtype for plane in planes] == [np.int8, np.int8, np.float32, np.float32]
        assert np.abs(planes[0][0, 0, :, :58].astype(int)).max(axis=-1).tolist() == [[127] * 58] * 2
        shape = model.manifest.architecture
        assert shape.kv_bytes_per_token == 3 * 4 * 2 * 2 * (16 + 4)
        assert sum(plane[:, :, :, :1].nbytes for plane in planes) * 3 == shape.kv_bytes_per_token


@pytest.mark.parametrize("rule", ["exact", "latest", "skip", "propagate"])
def test_the_engine_gives_what_a_request_alone_gives(
    make_recursive: Callable[..., Path], tmp_path: Path, rule: str
) -> None:
    checkpoint = AutoModelForCausalLM.from_pretrained(make_recursive())
    checkpoint.config.kv_rule = rule
    folder = tmp_path / "checkpoint"
    checkpoint.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((make_recursive() / "tokenizer.json").read_bytes())
    export(folder, tmp_path / "bundle", bits=32, kv_bits=8)
    rng = np.random.default_rng(8)
    with Model.load(tmp_path / "bundle") as model:
        engine, asked = Engine(model, prompt_rows=7), []
        for length in (3, 19, 8, 30):
            prompt = rng.integers(2, 300, length).tolist()
            policy = ExitPolicy(trace=tuple(rng.integers(1, 4, 25).tolist()))
            asked.append((prompt, policy, engine.submit(prompt, Sampling(max_tokens=25), policy)))
        list(engine.run())
        for prompt, policy, request in asked:
            alone = model.session().stream(prompt, Sampling(max_tokens=25), policy)
            assert [(token.id, token.depth) for token in request.tokens] == [(token.id, token.depth) for token in alone]


def test_it_is_proved_with_the_tolerance_of_8_bits(recursive: Path, tmp_path: Path) -> None:
    export(recursive, tmp_path / "b", bits=32, kv_bits=8)
    report = verify(tmp_path / "b", source=recursive)
    assert report.ok and report.tolerance.kl == 0.01
    assert report.depths[2].max_abs_logit_error > 1e-3  # it does round


def test_other_bits_are_refused(recursive: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="kv-bits 4: choose from 8, 32"):
        export(recursive, tmp_path / "b", kv_bits=4)
    assert not (tmp_path / "b").exists()


def test_a_graph_of_other_kv_bits_than_the_manifests_is_refused(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle(kv_bits=8)
    edit_manifest(bundle, lambda fields: fields["architecture"].update(kv_bits=32))
    assert Manifest.read(bundle).architecture.kv_bits == 32
    with pytest.raises(Exception, match="is not the graph its manifest describes"):
        Model.load(bundle)
