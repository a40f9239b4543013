"""The block graph: what it computes is what the loop graph computes, whatever runs together."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrt_edge.runtime import Engine, Model, Sampling
from rrt_edge.runtime.bundle.block_contract import BLOCK_GRAPH
from rrt_edge.runtime.bundle.kv_rules import EXACT
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.running import block as block_module
from rrt_edge.runtime.running.block import BlockRunner
from rrt_edge.runtime.running.cpu import Graph
from rrt_edge.runtime.running.cpu_cache import STEP
from rrt_edge.runtime.running.runner import NEVER, Part
from tests.runtime.running.alike import assert_alike, tokens

FULL = ExitPolicy()


@pytest.fixture(scope="module")
def runners(bundle: Path) -> Iterator[tuple[BlockRunner, Graph]]:
    """Both over the same weights, in float32: three loops."""
    manifest = Manifest.read(bundle)
    block = BlockRunner(bundle, manifest.architecture, 1)
    loop = Graph(bundle, manifest.architecture, EXACT, 1)
    yield block, loop
    block.close()
    loop.close()


@pytest.mark.parametrize("rule", ["exact", "latest", "skip", "last"])
def test_every_kv_rule_gives_the_loop_graphs_logits(runners: tuple[BlockRunner, Graph], rule: str) -> None:
    assert_alike(*runners, rule, 3 * STEP)


def test_a_row_at_each_depth_is_each_row_alone(runners: tuple[BlockRunner, Graph]) -> None:
    """In one call, over keys and values of different lengths; and the loop graph's step."""
    ids, outcomes = tokens(3, 70), []
    for runner, together in ((runners[0], True), (runners[0], False), (runners[1], True)):
        decoder = Decoder[Any, Any](runner)
        decoder.prefill(ids[:66], FULL)
        cache, binding = decoder.state.cache, runner.bind()

        def part(depth: int, rows: Any, position: int, least: float, cache: Any = cache) -> Part[Any]:
            return Part(cache, depth, rows, position, np.array([least], np.float32))

        first = runner.step(binding, [part(1, np.array(ids[66:67]), 66, NEVER)])[0]
        second = runner.step(binding, [part(2, first.hidden, 66, NEVER), part(1, np.array(ids[67:68]), 67, 0.0)])
        assert [len(done.logits) for done in second] == [0, 1]
        parts = [
            part(3, second[0].hidden, 66, 0.0),
            part(2, second[1].hidden, 67, NEVER),
            part(1, np.array(ids[68:69]), 68, 0.0),
        ]
        third = runner.step(binding, parts) if together else [runner.step(binding, [each])[0] for each in parts]
        assert cache.lengths == [69, 68, 67]
        outcomes.append([second[1].logits, third[0].logits, third[1].hidden, third[2].logits])
    for other in outcomes[1:]:
        for ours, theirs in zip(outcomes[0], other, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_one_call_serves_the_rows_at_all_depths(
    runners: tuple[BlockRunner, Graph], monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, calls = runners[0], []
    run = block_module.BlockBinding.run

    def counted(self: Any, parts: Any, planes: Any) -> Any:
        calls.append(len(parts))
        return run(self, parts, planes)

    monkeypatch.setattr(block_module.BlockBinding, "run", counted)
    decoder = Decoder[Any, Any](runner)
    decoder.prefill(tokens(4, 9), FULL)
    hidden, cache = np.zeros((1, runner.architecture.hidden_size), np.float32), decoder.state.cache
    binding, never = runner.bind(), np.array([NEVER], np.float32)
    del calls[:]
    deeper = [Part(cache, depth, hidden, 9, never) for depth in (3, 2)]
    runner.step(binding, [*deeper, Part(cache, 1, np.array([5]), 9, never)])
    assert calls == [3]
    runner.step(binding, [Part(cache, 1, np.array([5, 6]), 10, np.repeat(never, 2)), Part(cache, 3, hidden, 10, never)])
    assert calls == [3, 1, 1]


def test_forks_go_their_own_ways(runners: tuple[BlockRunner, Graph]) -> None:
    """Rows are written where they are kept: those of a fork must not be written over, and grow apart."""
    ids = tokens(5, STEP - 2)
    ends = [tokens(6, 10), tokens(7, 10)]
    said = []
    for runner in runners:
        decoder = Decoder[Any, Any](runner)
        decoder.prefill(ids, FULL)
        pair = [decoder, decoder.fork()]
        steps = zip(*ends, strict=True)
        said.append([each.step(token, FULL).logits for both in steps for each, token in zip(pair, both, strict=True)])
        pair[0].rewind(STEP - 4)
        said[-1].append(pair[0].step(7, FULL).logits)
        said[-1].append(pair[1].step(8, FULL).logits)
    for ours, theirs in zip(*said, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_several_sequences_share_the_loop_graph(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is opened for the first step that has so many, and closed with the model."""
    opened: list[Graph] = []
    start = Graph.__init__

    def watched(self: Graph, *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        opened.append(self)

    monkeypatch.setattr(Graph, "__init__", watched)
    with Model.load(bundle, device="cpu") as model:
        assert isinstance(model._loaded.runner, BlockRunner)
        sampling, prompts = Sampling(max_tokens=12), [tokens(seed, 9) for seed in range(4)]
        alone = [[token.id for token in model.generate(prompt, sampling, "full").tokens] for prompt in prompts]
        for count in (2, 4):
            assert not opened
            engine = Engine(model)
            requests = [engine.submit(prompt, sampling, "full") for prompt in prompts[:count]]
            for _ in engine.run():
                pass
            assert [[token.id for token in request.tokens] for request in requests] == alone[:count]
        assert len(opened) == 1
    with pytest.raises(Exception, match="closed"):
        opened[0].session  # noqa: B018


def test_what_a_bundle_without_it_says_is_the_same(bundle: Path, tmp_path: Path) -> None:
    """Bundles that were exported before there was one run in the loop graph."""
    older = tmp_path / "older"
    shutil.copytree(bundle, older)
    (older / BLOCK_GRAPH).unlink()
    manifest = Manifest.read(bundle)
    files = {name: file for name, file in manifest.files.items() if name != BLOCK_GRAPH}
    dataclasses.replace(manifest, files=files).write(older)
    replies = []
    for folder, kind in ((bundle, BlockRunner), (older, Graph)):
        with Model.load(folder, device="cpu") as model:
            assert type(model._loaded.runner) is kind
            replies.append([token.id for token in model.generate(tokens(8, 9), Sampling(max_tokens=30), "full").tokens])
    assert replies[0] == replies[1]
