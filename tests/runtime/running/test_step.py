"""The step form: rows of several sequences, each at its own depth, equal the same rows run alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import Model
from rrt_edge.runtime.running.cpu_cache import KVCache
from rrt_edge.runtime.running.runner import NEVER, Call, Part


def depth_outputs(folder: Path, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits [depths, S, V] and gates [depths, S] of one forward of a text in torch."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_depths=True)
    gate = torch.sigmoid(out.gate_logits[0]).T.numpy()
    return torch.cat(out.depth_logits).numpy(), np.concatenate([gate, np.ones((1, len(ids)))])


@pytest.mark.parametrize("loops", [2, 3, 4])
def test_rows_at_mixed_depths_equal_torch(make_recursive: Callable[..., Path], tmp_path: Path, loops: int) -> None:
    """Random schedules: each step takes some sequences, some rows of each, each at a depth of its own."""
    from rrt_edge.exporters import export

    folder = make_recursive(loops=loops, rank=4)
    export(folder, tmp_path / "bundle", bits=32)
    rng = np.random.default_rng(loops)
    texts = [rng.integers(2, 300, length).tolist() for length in (30, 17, 24, 9, 12)]
    expected = [depth_outputs(folder, ids) for ids in texts]
    with Model.load(tmp_path / "bundle") as model:
        graph, binding = model._loaded.runner, model._loaded.runner.bind()
        caches = [KVCache(model.manifest.architecture) for _ in texts]
        hidden = [[np.zeros((0, 72), np.float32)] * loops for _ in texts]  # after each depth, all rows so far
        seen: set[frozenset[int]] = set()
        while any(cache.lengths[-1] < len(ids) for cache, ids in zip(caches, texts, strict=True)):
            parts, whose = [], []
            for index in rng.permutation(len(texts)):
                cache = caches[index]
                above = [len(texts[index]), *cache.lengths]
                open_depths = [depth for depth in range(1, loops + 1) if cache.lengths[depth - 1] < above[depth - 1]]
                if not open_depths or rng.random() < 0.3:
                    continue
                depth = int(rng.choice(open_depths))
                start = cache.lengths[depth - 1]
                stop = start + int(rng.integers(1, min(6, above[depth - 1] - start) + 1))
                rows = np.array(texts[index][start:stop]) if depth == 1 else hidden[index][depth - 2][start:stop]
                thresholds = rng.choice([0, 0.5, NEVER], stop - start).astype(np.float32)
                parts.append(Part(cache, depth, rows, start, thresholds))
                whose.append((index, depth, start, stop, thresholds))
            if not parts:
                continue
            seen.add(frozenset(part.depth for part in parts))
            for done, (index, depth, start, stop, thresholds) in zip(graph.step(binding, parts), whose, strict=True):
                hidden[index][depth - 1] = np.concatenate([hidden[index][depth - 1], done.hidden])
                logits, gate = (array[depth - 1, start:stop] for array in expected[index])
                np.testing.assert_allclose(done.gate, gate, atol=1e-4)
                np.testing.assert_allclose(done.logits, logits[done.gate >= thresholds], atol=1e-4)
        assert any(len(depths) > 1 for depths in seen)


def test_a_session_runs_both_forms_in_turn(bundle: Path) -> None:
    ids = np.arange(5, 14)
    with Model.load(bundle) as model:
        graph, binding = model._loaded.runner, model._loaded.runner.bind()
        whole, stepped = KVCache(model.manifest.architecture), KVCache(model.manifest.architecture)
        once = graph.run(binding, whole, Call(ids, 0, 1, 3, logit_rows=[8]))
        rows: np.ndarray = ids
        for depth in (1, 2, 3):
            thresholds = np.full(9, NEVER if depth < 3 else 0, np.float32)
            (done,) = graph.step(binding, [Part(stepped, depth, rows, 0, thresholds)])
            rows = done.hidden
        again = graph.run(binding, KVCache(model.manifest.architecture), Call(ids, 0, 1, 3, logit_rows=[8]))
    np.testing.assert_allclose(done.logits[-1], once.logits[0], atol=1e-5)
    np.testing.assert_array_equal(again.logits, once.logits)
    assert whole.lengths == stepped.lengths == [9, 9, 9]
