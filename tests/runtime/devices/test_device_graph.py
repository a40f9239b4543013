"""The graphs that devices run, on the CPU in float32: they say what torch and the loop graph say."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import rrt_edge
from rrt_edge.exporters import export
from rrt_edge.runtime import BadInputError, BundleError, Engine, Model, Sampling
from rrt_edge.runtime.bundle.device_graphs import why_cpu_only
from rrt_edge.runtime.bundle.manifest import DEVICE_GRAPHS, Manifest
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.errors import DeviceError
from rrt_edge.runtime.running.devices.runner import DeviceGraph
from rrt_edge.runtime.running.kv_choice import fitting_rule
from rrt_edge.runtime.running.runner import Call
from tests.checkpoints import save_tokenizer
from tests.families import CASES, random_model
from tests.looped import KINDS, reference, write_looped
from tests.runtime.devices.decoding import on_device

RNG = np.random.default_rng(7)
IDS = RNG.integers(2, 300, 60)
PROMPTS = [RNG.integers(2, 300, length).tolist() for length in (1, 9, 40, 130)]
POLICIES = ["full", "threshold=0.5", "depth=1", "depth=2"]
WHOLE, PIECES = [(0, 60)], [(0, 17), (17, 18), (18, 50), (50, 51), (51, 60)]
CPU_ONLY = {"qwen2-window": "differ from depth to depth", "gemma3": "differ from depth to depth"}
EIGHTS = {"hidden_size": 96, "head_dim": 16, "rope_parameters": {  # phi3-long's, for heads of 16
    "rope_type": "longrope", "rope_theta": 10000.0, "long_factor": [2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
}}  # fmt: skip
CHANGES = {"phi3": {"head_dim": 16}, "phi3-long": EIGHTS}


def make_family(case: str, folder: Path, bits: int = 32) -> tuple[Path, list[np.ndarray]]:
    """A bundle of a family's random model, and torch's logits [S, V] of `IDS` at each depth."""
    random_model(case, **CHANGES.get(case, {})).save_pretrained(folder / "source")
    save_tokenizer(folder / "source", 300)
    rrt_edge.convert(folder / "source", folder / "recursive", loops=3, rank=4, own_vectors=case == "olmo2")
    export(folder / "recursive", folder / "bundle", bits=bits)
    model = AutoModelForCausalLM.from_pretrained(folder / "recursive")
    with torch.no_grad():
        depths = model(torch.tensor(IDS[None]), output_depths=True).depth_logits
    return folder / "bundle", [logits[0].numpy() for logits in depths]


def logits_at(model: Model, depth: int, pieces: list[tuple[int, int]]) -> np.ndarray:
    """Logits of `IDS` that ran so many loops, fed in pieces."""
    runner, found = model._loaded.runner, []
    binding, cache = runner.bind(), runner.new_cache()
    for start, stop in pieces:
        call = Call(IDS[start:stop], start, 1, depth, logit_rows=range(stop - start))
        found.append(runner.run(binding, cache, call).logits)
    return np.concatenate(found)


@pytest.mark.parametrize("case", CASES)
def test_every_family_says_what_torch_says(case: str, tmp_path: Path) -> None:
    bundle, expected = make_family(case, tmp_path)
    manifest = Manifest.read(bundle)
    if case in CPU_ONLY:
        assert CPU_ONLY[case] in str(why_cpu_only(bundle, manifest))
        assert not (bundle / DEVICE_GRAPHS).exists()
        return
    with on_device(bundle, context=64) as model:
        for depth in (1, 2, 3):
            scale = max(1.0, float(np.abs(expected[depth - 1]).max()))
            for pieces in (WHOLE, PIECES):
                assert np.abs(logits_at(model, depth, pieces) - expected[depth - 1]).max() < 1e-4 * scale


@pytest.mark.parametrize("kind", KINDS)
def test_looped_models_say_what_their_formulas_say(kind: str, tmp_path: Path) -> None:
    export(write_looped(tmp_path / "source", kind, head_dim=16), tmp_path / "bundle", bits=32)
    ids = IDS.tolist()
    expected, left = reference(tmp_path / "source", ids)
    with on_device(tmp_path / "bundle", context=64) as model:
        for depth in range(1, len(expected) + 1):
            for pieces in (WHOLE, PIECES):
                assert np.abs(logits_at(model, depth, pieces) - expected[depth - 1].numpy()).max() < 1e-4
        if kind != "ouro":
            return
        decoder, depths = Decoder(model._loaded.runner), []
        for position, token in enumerate(ids):
            step = decoder.step(token, ExitPolicy(threshold=0.7))
            depths.append(step.depth)
            assert abs(step.gate - float(left[step.depth - 1, position])) < 1e-4
            assert np.abs(step.logits - expected[step.depth - 1, position].numpy()).max() < 1e-4
        assert depths == ((left >= 0.7).float().argmax(0) + 1).tolist()
        assert len(set(depths)) > 2


def test_requests_of_a_looped_model_share_steps(tmp_path: Path) -> None:
    export(write_looped(tmp_path / "source", "ouro", head_dim=16), tmp_path / "bundle", bits=32)
    replies = []
    for model in (on_device(tmp_path / "bundle"), Model.load(tmp_path / "bundle")):
        with model:
            engine = Engine(model)
            requests = [engine.submit(prompt, Sampling(max_tokens=20), "threshold=0.7") for prompt in PROMPTS]
            list(engine.run())
            replies.append([[(token.id, token.depth) for token in request.tokens] for request in requests])
    assert replies[0] == replies[1]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_packed_weights_stay_near_torch(bits: int, tmp_path: Path) -> None:
    bundle, expected = make_family("llama", tmp_path, bits=bits)
    with on_device(bundle) as model:
        found = logits_at(model, 3, WHOLE)
    assert np.corrcoef(found.ravel(), expected[-1].ravel())[0, 1] > (0.9 if bits == 4 else 0.999)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_replies_are_the_loop_graphs(bundle: Path, policy: str, temperature: float, always_draft: None) -> None:
    with on_device(bundle) as ours, Model.load(bundle) as theirs:
        for prompt in PROMPTS:
            sampling = Sampling(max_tokens=90, temperature=temperature, seed=3)
            found, expected = ours.generate(prompt, sampling, policy), theirs.generate(prompt, sampling, policy)
            assert [token.id for token in found.tokens] == [token.id for token in expected.tokens]
            assert [token.depth for token in found.tokens] == [token.depth for token in expected.tokens]
            assert found.stats.block_rows_per_token == expected.stats.block_rows_per_token
            assert found.stats.drafted == expected.stats.drafted
            gates = np.array([[token.gate for token in reply.tokens] for reply in (found, expected)])
            np.testing.assert_allclose(*gates, atol=1e-4)


def test_attention_that_takes_few_rows_gets_few(bundle: Path) -> None:
    with on_device(bundle) as ours, Model.load(bundle) as theirs:
        assert isinstance(ours._loaded.runner, DeviceGraph)
        ours._loaded.runner.most_rows = 5
        for policy in ("full", "threshold=0.5"):
            expected = theirs.generate(PROMPTS[-1], Sampling(max_tokens=20), policy)
            assert ours.generate(PROMPTS[-1], Sampling(max_tokens=20), policy).text == expected.text
        engine = Engine(ours)
        requests = [engine.submit(prompt, Sampling(max_tokens=20), "threshold=0.5") for prompt in PROMPTS]
        list(engine.run())
        for prompt, request in zip(PROMPTS, requests, strict=True):
            assert request.text == theirs.generate(prompt, Sampling(max_tokens=20), "threshold=0.5").text


def test_a_conversation_forks_rewinds_and_goes_on(bundle: Path) -> None:
    def turns(model: Model) -> list[list[int]]:
        session, said = model.session(), []
        ids = PROMPTS[1]
        for policy in ("threshold=0.5", "full", "depth=1", "full"):
            tokens = [token.id for token in session.stream(ids, Sampling(max_tokens=30), policy)]
            said.append(tokens)
            other = session.fork()
            said += [[token.id for token in one.stream([*ids, *tokens, 9, 8], Sampling(max_tokens=12), policy)]
                     for one in (other, session)]  # fmt: skip
            session.rewind(len(session.ids) // 2)
            said.append([token.id for token in session.stream([*session.ids, 4, 5], Sampling(max_tokens=9), policy)])
            ids = [*ids, *tokens, 40, 41]
        return said

    with on_device(bundle) as ours, Model.load(bundle) as theirs:
        assert turns(ours) == turns(theirs)


@pytest.mark.parametrize("kv_bits", [8, 32])
def test_a_saved_conversation_goes_on_elsewhere(make_bundle: Callable[..., Path], kv_bits: int, tmp_path: Path) -> None:
    """From the device to the CPU and back, in the middle of a reply, with rows that wait."""
    bundle, prompt = make_bundle(kv_bits=kv_bits), PROMPTS[2]
    with on_device(bundle) as device, Model.load(bundle) as host:
        for here, there in ((device, host), (host, device)):
            session = here.session()
            first = [token.id for token in session.stream(prompt, Sampling(max_tokens=20), "threshold=0.5")]
            session.save(tmp_path / "talk.safetensors")
            ids = [*prompt, *first, 7]
            expected = [token.id for token in session.stream(ids, Sampling(max_tokens=20), "full")]
            moved = there.load_session(tmp_path / "talk.safetensors")
            assert moved.ids == [*prompt, *first][: len(moved.ids)] and len(moved.ids) >= len(prompt) + 19
            found = [token.id for token in moved.stream(ids, Sampling(max_tokens=20), "full")]
            assert found == expected


def test_a_window_is_kept_through_a_file(tmp_path: Path) -> None:
    """The CPU drops what no window reaches; the device goes on without it."""
    bundle, _ = make_family("mistral", tmp_path)
    prompt = np.random.default_rng(1).integers(2, 300, 300).tolist()
    with on_device(bundle) as device, Model.load(bundle) as host:
        session = host.session()
        first = [token.id for token in session.stream(prompt, Sampling(max_tokens=5))]
        session.save(tmp_path / "talk.safetensors")
        ids = [*prompt, *first, 7]
        expected = [token.id for token in session.stream(ids, Sampling(max_tokens=20))]
        moved = device.load_session(tmp_path / "talk.safetensors")
        assert [token.id for token in moved.stream(ids, Sampling(max_tokens=20))] == expected


@pytest.mark.parametrize("prompt_rows", [3, 32])
def test_requests_together_equal_requests_alone(bundle: Path, prompt_rows: int) -> None:
    """More requests than slots, at depths of their own; some begin alike."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 300, rng.integers(1, 50)).tolist() for _ in range(9)]
    prompts += [[*prompts[0], *range(30, 60), 5], [*prompts[0], *range(30, 60), 6]]
    with on_device(bundle) as model, Model.load(bundle) as alone:
        engine = Engine(model, prompt_rows=prompt_rows)
        asked = []
        for index, prompt in enumerate(prompts):
            policy = POLICIES[index % len(POLICIES)]
            sampling = Sampling(max_tokens=5 + index, temperature=0.7 * (index % 2), seed=index)
            asked.append((prompt, sampling, policy, engine.submit(prompt, sampling, policy)))
        list(engine.run())
        for prompt, sampling, policy, request in asked:
            expected = alone.generate(prompt, sampling, policy)
            found = request.generation
            assert [(t.id, t.depth) for t in found.tokens] == [(t.id, t.depth) for t in expected.tokens]


def test_weights_are_stored_once(demo: Path) -> None:
    """The graphs of devices are small, and point into the same file."""
    manifest = Manifest.read(demo)
    stored = (demo / "model.onnx.data").stat().st_size
    assert stored <= sum(manifest.weight_bytes.values()) + 64 * 200  # alignment
    assert (demo / DEVICE_GRAPHS).stat().st_size < stored / 50
    assert manifest.files[DEVICE_GRAPHS].bytes == (demo / DEVICE_GRAPHS).stat().st_size


def test_only_the_rule_exact_runs_on_devices(bundle: Path, recursive: Path, tmp_path: Path) -> None:
    with on_device(bundle) as model:
        for rule in ("latest", "last"):
            with pytest.raises(DeviceError, match=f"kv-rule {rule}: runs on the CPU only"):
                model.session(kv_rule=rule)
        assert fitting_rule(model.manifest, model._loaded.runner.rules, 100, 1).name == "exact"
    shutil.copytree(recursive, tmp_path / "trained")
    config = json.loads((tmp_path / "trained" / "config.json").read_text("utf-8"))
    for rule in ("skip", "propagate"):
        (tmp_path / "trained" / "config.json").write_text(json.dumps({**config, "kv_rule": rule}), "utf-8")
        export(tmp_path / "trained", tmp_path / "bundle", bits=32)
        manifest = Manifest.read(tmp_path / "bundle")
        reason = why_cpu_only(tmp_path / "bundle", manifest)
        assert reason is not None and f"trained for the KV rule {rule}" in reason


def test_a_damaged_archive_is_named(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    shutil.copytree(bundle, copy)
    about = json.loads(zipfile.ZipFile(copy / DEVICE_GRAPHS).read("about.json"))
    for content in (b"no archive", None):
        if content is None:
            with zipfile.ZipFile(copy / DEVICE_GRAPHS, "w") as archive:
                archive.writestr("about.json", json.dumps(about))
        else:
            (copy / DEVICE_GRAPHS).write_bytes(content)
        with pytest.raises(BundleError, match=r"device_graphs.zip: cannot be read .*; export the bundle again"):
            on_device(copy)
        with pytest.raises(BundleError, match=r"device_graphs.zip: .*"):
            Model.load(copy)  # its hash is not the manifest's


def test_a_closed_model_says_so(bundle: Path) -> None:
    model = on_device(bundle)
    session = model.session()
    session.generate([5, 6], Sampling(max_tokens=3))
    model.close()
    for use in (lambda: session.generate([5, 6, 7]), lambda: model.generate([5, 6])):
        with pytest.raises(BadInputError, match="closed; load the bundle again"):
            use()
