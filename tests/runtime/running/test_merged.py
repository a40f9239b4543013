"""Bundles whose adapters are merged say what the ones with adapters say, in every way that a model is run."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rrt_edge.runtime import BundleError, Engine, Model, Sampling
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.check import check
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.running.block import BlockRunner
from rrt_edge.runtime.running.cpu_cache import STEP
from rrt_edge.runtime.running.merged import MergedRunner
from rrt_edge.runtime.running.opening import open_runner
from rrt_edge.runtime.running.runner import Call
from tests.runtime.decoding.test_text_drafts import Copying
from tests.runtime.running.alike import assert_alike, tokens

FULL = ExitPolicy()


@pytest.fixture(scope="module")
def merged(recursive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bundle` with its adapters merged: three loops, float32."""
    from rrt_edge.exporters import export

    folder = tmp_path_factory.mktemp("merged") / "bundle"
    export(recursive, folder, bits=32, merge_adapters=True)
    return folder


@pytest.fixture(scope="module")
def runners(merged: Path, bundle: Path) -> Iterator[tuple[MergedRunner, BlockRunner]]:
    architecture = Manifest.read(bundle).architecture
    both = MergedRunner(merged, architecture, 1), BlockRunner(bundle, architecture, 1)
    yield both
    for runner in both:
        runner.close()


@pytest.mark.parametrize("rule", ["exact", "latest", "skip", "last"])
def test_every_kv_rule_gives_the_shared_blocks_logits(runners: tuple[MergedRunner, BlockRunner], rule: str) -> None:
    assert_alike(*runners, rule, 2 * STEP)


@pytest.mark.parametrize("policy", ["full", "depth=2", "threshold=0.5", "mean-depth=2"])
def test_conversations_and_an_engine_give_the_shared_blocks_tokens(merged: Path, bundle: Path, policy: str) -> None:
    prompts, sampling = [tokens(seed, 20 + seed) for seed in (3, 4, 5)], Sampling(max_tokens=12)
    replies = []
    for folder in (merged, bundle):
        with Model.load(folder) as model:
            session = model.session()
            said = [token.id for prompt in prompts for token in session.stream(prompt, sampling, policy)]
            engine = Engine(model)
            requests = [engine.submit(prompt, sampling, policy) for prompt in prompts]
            list(engine.run())
            replies.append([said, *([token.id for token in request.tokens] for request in requests)])
    assert replies[0] == replies[1]


def test_no_loop_makes_drafts_and_the_text_does(merged: Path, bundle: Path) -> None:
    """In a conversation and in an engine, whose steps serve one request each."""
    prompts, sampling = [tokens(seed, 20) for seed in (6, 7)], Sampling(max_tokens=30)
    with Model.load(bundle, reproducible=True) as model:
        plain = [model.generate(prompt, sampling, "full") for prompt in prompts]
    with Model.load(merged) as model:
        for prompt, theirs in zip(prompts, plain, strict=True):
            ids = [token.id for token in theirs.tokens]
            model._loaded.drafting = Copying([*prompt, *ids])
            ours = model.generate(prompt, sampling, "full")
            engine = Engine(model)
            request = engine.submit(prompt, sampling, "full")
            list(engine.run())
            assert [token.id for token in ours.tokens] == [token.id for token in request.tokens] == ids
            for stats in (ours.stats, request.generation.stats):
                assert stats.drafted == stats.text_drafted == stats.text_accepted > 0


def test_the_bundle_is_proved_and_says_what_it_costs(merged: Path, bundle: Path) -> None:
    manifest, shared = Manifest.read(merged), Manifest.read(bundle)
    assert check(merged).ok
    assert manifest.merged and not shared.merged
    assert manifest.shared_weight_bytes == sum(shared.weight_bytes.values())
    own = sum(count for part, count in manifest.weight_bytes.items() if part != "gate")
    assert own == shared.unshared_weight_bytes and "lora" not in manifest.weight_bytes
    assert manifest.files.keys() == shared.files.keys() - {"block.onnx", "device_graphs.zip"}


def test_a_manifest_that_hides_the_merging_is_refused(merged: Path) -> None:
    hidden = dataclasses.replace(Manifest.read(merged), shared_weight_bytes=None)
    with pytest.raises(BundleError, match=r"is not the graph its manifest describes .*shared_weight_bytes"):
        open_runner(merged, hidden, "cpu", 1)


def test_a_graph_that_says_another_depth_than_it_was_asked_for_is_damaged(merged: Path, tmp_path: Path) -> None:
    import onnx

    folder = Path(shutil.copytree(merged, tmp_path / "bundle"))
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    [node] = [node for node in model.graph.node if node.output[0] == "exit_depth"]
    node.op_type = "Add"
    node.input.append("beyond")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(1 << 40), "beyond"))
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    runner = MergedRunner(folder, Manifest.read(merged).architecture, 1)
    with pytest.raises(BundleError, match="ran depth 1099511627779 where 1 to 3 were asked for"):
        runner.run(runner.bind(), runner.new_cache(), Call(np.zeros(1, np.int64), 0, 1, 3, logit_rows=(0,)))
    runner.close()


def test_devices_say_why_they_do_not_run_it(merged: Path) -> None:
    from rrt_edge.runtime.bundle.device_graphs import why_cpu_only

    reason = why_cpu_only(merged, Manifest.read(merged))
    assert reason is not None and "its adapters are merged" in reason


@pytest.mark.slow
def test_packed_weights_and_weights_that_are_read_give_the_same_logits(merged: Path, tmp_path: Path) -> None:
    replies = []
    for options in ({}, {"mmap": False}, {"weight_cache": tmp_path}):
        with Model.load(merged, reproducible=True, **options) as model:
            reply = model.generate(tokens(7, 20), Sampling(max_tokens=8, logprobs=5), "full")
            replies.append([(token.id, token.logprob, token.top_logprobs) for token in reply.tokens])
    assert replies[0] == replies[1] == replies[2]
