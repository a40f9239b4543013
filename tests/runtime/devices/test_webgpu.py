"""A bundle on WebGPU, against the same graphs in float32 on the CPU. Mesa's software Vulkan will do for a GPU."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from rrt_edge.exporters import Tolerance, export, verification, verify
from rrt_edge.runtime import Engine, Model, Sampling
from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.errors import DeviceError
from rrt_edge.runtime.running.devices.runner import DeviceGraph
from tests.checkpoints import save_tokenizer
from tests.conftest import ROOT
from tests.families import random_model
from tests.runtime.devices.decoding import HEAVY, QUESTIONS, compare, on_device, profiled
from tests.runtime.devices.test_device_graph import PIECES, WHOLE, logits_at, make_family

RELATIVE = 2e-2  # of logits in float16


def test_a_whole_decode_is_the_cpus_at_every_depth(webgpu: str, demo: Path) -> None:
    done = compare(demo, webgpu, "float16")
    assert done.positions > 300 and max(done.errors) < RELATIVE
    assert min(done.agree) >= 0.99 * done.positions
    assert done.exits == [0, 0]


@pytest.mark.parametrize("policy", ["full", "threshold", "depth=1", "threshold=0.9999"])
def test_replies_are_the_cpus(webgpu: str, demo: Path, policy: str) -> None:
    with on_device(demo, webgpu, precision="float16") as gpu, on_device(demo) as cpu:
        for question in QUESTIONS[:4]:
            found, expected = (
                list(model.chat([{"role": "user", "content": question}], Sampling(max_tokens=40), policy))
                for model in (gpu, cpu)
            )
            assert [token.id for token in found] == [token.id for token in expected]


def test_products_and_attention_run_on_the_device(webgpu: str, demo: Path, tmp_path: Path) -> None:
    with on_device(demo, webgpu, precision="float16", profile=tmp_path / "run") as model:
        model.generate("def", Sampling(max_tokens=4, logit_bias=dict.fromkeys(model.manifest.eos_token_ids, -99.0)))
        engine = Engine(model)
        for prompt in ("def", "class", "import"):
            engine.submit(prompt, Sampling(max_tokens=3))
        list(engine.run())
        assert isinstance(model._loaded.runner, DeviceGraph)
        ran = profiled(model._loaded.runner)
        shape, most = model.manifest.architecture, model._loaded.runner.slots
    for form in ("block", "step"):
        heavy = {provider for kind, provider in ran[form] if kind in HEAVY}
        assert heavy == {"WebGpuExecutionProvider"}
        attended = ran[form]["GroupQueryAttention", "WebGpuExecutionProvider"]
        slots = 1 if form == "block" else most
        assert attended >= shape.layers_per_block * slots and attended % (shape.layers_per_block * slots) == 0
        assert ran[form]["MatMulNBits", "WebGpuExecutionProvider"] >= attended * 4 / slots
        on_cpu = {kind for kind, provider in ran[form] if provider == "CPUExecutionProvider"}
        assert on_cpu <= {"Split"}  # of the two numbers that say which rows run
    assert {provider for _, provider in ran["head"]} == {"WebGpuExecutionProvider"}


@pytest.mark.parametrize("case", ["llama", "qwen3", "gpt_neox", "mistral", "olmo2", "granite"])
def test_families_say_what_torch_says(webgpu: str, case: str, tmp_path: Path) -> None:
    """Long prompts too: more rows in a call than the driver's attention may take."""
    bundle, expected = make_family(case, tmp_path)
    for precision, allowed in (("float32", 1e-4), ("float16", RELATIVE)):
        with on_device(bundle, webgpu, precision=precision, context=64) as model:
            for depth in (1, 3):
                scale = max(1.0, float(np.abs(expected[depth - 1]).max()))
                for pieces in (WHOLE, PIECES):
                    assert np.abs(logits_at(model, depth, pieces) - expected[depth - 1]).max() < allowed * scale


@pytest.mark.parametrize("block_size", [64, 128])
def test_blocks_of_every_size_say_what_the_cpu_says(webgpu: str, block_size: int, tmp_path: Path) -> None:
    widths = {"hidden_size": 512, "intermediate_size": 576, "num_attention_heads": 8}
    random_model("llama", **widths).save_pretrained(tmp_path / "source")
    save_tokenizer(tmp_path / "source", 300)
    export(tmp_path / "source", tmp_path / "bundle", loops=3, rank=8, block_size=block_size)
    with on_device(tmp_path / "bundle", webgpu, precision="float32") as gpu, on_device(tmp_path / "bundle") as cpu:
        for depth in (1, 3):
            ours, theirs = (logits_at(model, depth, WHOLE) for model in (gpu, cpu))
            assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max()


def test_what_its_attention_lacks_is_said_at_load(webgpu: str, tmp_path: Path) -> None:
    """It ignores soft caps: a silent error that the check at opening finds."""
    bundle, _ = make_family("gemma2", tmp_path)
    with pytest.raises(DeviceError, match=r"device webgpu: its attention is wrong with a soft cap of 5.0"):
        on_device(bundle, webgpu)
    with on_device(bundle) as cpu:
        assert cpu.generate([5, 6], Sampling(max_tokens=2)).stats.generated_tokens == 2


def test_requests_together_equal_requests_alone(webgpu: str, bundle: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 300, rng.integers(1, 40)).tolist() for _ in range(7)]
    with on_device(bundle, webgpu) as model, on_device(bundle) as alone:
        engine = Engine(model)
        asked = []
        for index, prompt in enumerate(prompts):
            policy = ("full", "threshold=0.5", "depth=1", "depth=2", "threshold=0.7")[index % 5]
            sampling = Sampling(max_tokens=5 + index, temperature=0.7 * (index % 2), seed=index)
            asked.append((prompt, sampling, policy, engine.submit(prompt, sampling, policy)))
        list(engine.run())
        for prompt, sampling, policy, request in asked:
            expected = alone.generate(prompt, sampling, policy).tokens
            assert [(t.id, t.depth) for t in request.tokens] == [(t.id, t.depth) for t in expected]


def test_drafts_change_no_token(webgpu: str, bundle: Path, always_draft: None, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [np.random.default_rng(seed).integers(2, 300, 8).tolist() for seed in range(3)]
    with on_device(bundle, webgpu) as model:
        piped = [model.generate(prompt, Sampling(max_tokens=40)) for prompt in prompts]
        monkeypatch.setattr(Drafting, "pays", lambda self, last, leaves=False: False)
        for prompt, found in zip(prompts, piped, strict=True):
            expected = model.generate(prompt, Sampling(max_tokens=40))
            assert found.stats.drafted > expected.stats.drafted == 0
            assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]


def test_model_load_takes_it(webgpu: str, demo: Path) -> None:
    with Model.load(demo, device="webgpu") as model:
        generation = model.generate("def", Sampling(max_tokens=3))
        assert model.device == generation.stats.device == "webgpu"
        assert isinstance(model._loaded.runner, DeviceGraph) and model._loaded.runner.precision == "float16"


def test_verify_compares_a_device_with_the_source(webgpu: str, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer positions than a user's, whose GPU is no software."""
    monkeypatch.setattr(verification, "POSITIONS", 60)
    source = ROOT / "samples" / "pydoc" / "recursive"
    found, expected = (verify(demo, source=source, device=device) for device in (webgpu, "cpu"))
    assert found.positions == expected.positions >= 60 and found.tolerance == Tolerance(kl=0.05, top1_agreement=0.95)
    for ours, theirs in zip(found.depths, expected.depths, strict=True):
        assert abs(ours.kl - theirs.kl) < 0.005 and abs(ours.top1_agreement - theirs.top1_agreement) < 0.03


def test_threads_take_turns(webgpu: str, bundle: Path, tmp_path: Path) -> None:
    """Generating, saving, loading conversations and models side by side, which providers themselves do not bear."""
    prompts = [np.random.default_rng(seed).integers(2, 300, 20).tolist() for seed in range(3)]
    with on_device(bundle, webgpu) as model:
        expected = [model.generate(prompt, Sampling(max_tokens=15), "threshold=0.5").text for prompt in prompts]

        def generates(seed: int) -> bool:
            texts = [model.generate(prompts[seed], Sampling(max_tokens=15), "threshold=0.5").text for _ in range(4)]
            return texts == [expected[seed]] * 4

        def saves() -> bool:
            session = model.session()
            session.generate(prompts[0], Sampling(max_tokens=15), "threshold=0.5")
            for _ in range(6):
                session.save(tmp_path / "talk.safetensors")
                if model.load_session(tmp_path / "talk.safetensors").ids != session.ids:
                    return False
            return True

        def loads() -> bool:
            with on_device(bundle, webgpu) as other:
                return other.generate(prompts[1], Sampling(max_tokens=15), "threshold=0.5").text == expected[1]

        with ThreadPoolExecutor(4) as pool:
            jobs = [pool.submit(generates, 0), pool.submit(generates, 2), pool.submit(saves), pool.submit(loads)]
            assert all(job.result() for job in jobs)
