"""Conversion: exact at full rank, shared at rank 0, stored once, counted as the paper counts."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)

import rrt_edge
from rrt_edge.conversion.adapters import residual_factors
from rrt_edge.conversion.block import shared_source
from rrt_edge.conversion.conversion import count_parameters
from tests.families import random_model

IDS = torch.randint(2, 300, (2, 11), generator=torch.Generator().manual_seed(7))


@pytest.mark.slow
@pytest.mark.parametrize("init", ["average", "stepwise", "lower"])
@pytest.mark.parametrize("loops", [2, 3, 4])
def test_full_rank_reproduces_the_source(source: Path, tmp_path: Path, init: str, loops: int) -> None:
    rrt_edge.convert(source, tmp_path / "out", loops=loops, init=init, rank=10_000)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = LlamaForCausalLM.from_pretrained(source)
    assert type(ours) is rrt_edge.RecursiveForCausalLM
    torch.testing.assert_close(ours(IDS).logits, theirs(IDS).logits, atol=1e-4, rtol=0)


def test_loops_may_stand_for_every_other_layer(source: Path, tmp_path: Path) -> None:
    report = rrt_edge.convert(source, tmp_path / "out", loops=3, rank=10_000, order="interleaved", own_vectors=True)
    ours, looped = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), LlamaForCausalLM.from_pretrained(source)
    states = [copy.deepcopy(layer.state_dict()) for layer in looped.model.layers]
    for slot, number in enumerate((0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11)):
        looped.model.layers[slot].load_state_dict(states[number])
    torch.testing.assert_close(ours(IDS).logits, looped(IDS).logits, atol=1e-4, rtol=0)
    assert report.order == ours.config.order == "interleaved"
    assert "| order of the layers | interleaved |" in (tmp_path / "out" / "README.md").read_text()


def test_interleaved_layers_attend_alike(tmp_path: Path) -> None:
    random_model("gemma3").save_pretrained(tmp_path / "source")
    with pytest.raises(rrt_edge.BadInputError, match="order interleaved goes with models whose layers all attend"):
        rrt_edge.convert(tmp_path / "source", tmp_path / "out", loops=2, order="interleaved")


@pytest.mark.parametrize("init", ["average", "stepwise", "lower"])
def test_rank_zero_is_the_source_with_its_layers_repeated(source: Path, tmp_path: Path, init: str) -> None:
    rrt_edge.convert(source, tmp_path / "out", loops=3, init=init, rank=0)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    looped = LlamaForCausalLM.from_pretrained(source)
    states = [copy.deepcopy(layer.state_dict()) for layer in looped.model.layers]
    for k in range(4):
        tied = states[k::4]
        shared = {
            "average": {name: sum(state[name] for state in tied) / 3 for name in tied[0]},
            "stepwise": states[[0, 4, 7, 11][k]],
            "lower": states[k],
        }[init]
        for loop in range(3):
            looped.model.layers[k + 4 * loop].load_state_dict(shared)
    torch.testing.assert_close(ours(IDS).logits, looped(IDS).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("init", ["average", "stepwise"])
def test_rank_one_is_a_rank_too(source: Path, tmp_path: Path, init: str) -> None:
    """Matrices of one column or one row are written as any others; what is lost is all but the best rank 1."""
    rrt_edge.convert(source, tmp_path / "out", loops=2, init=init, rank=1)
    rrt_edge.convert(source, tmp_path / "none", loops=2, init=init, rank=0)
    block, plain, layers = (
        AutoModelForCausalLM.from_pretrained(folder).model for folder in (tmp_path / "out", tmp_path / "none", source)
    )
    for loop in range(2):
        linear, shared = block.block[1].mlp.down_proj, plain.block[1].mlp.down_proj.weight
        ours = linear.weight + linear.lora_B[loop] @ linear.lora_A[loop]
        wanted = layers.layers[1 + 6 * loop].mlp.down_proj.weight - shared
        values = torch.linalg.svdvals(wanted)
        torch.testing.assert_close((wanted + shared - ours).norm(), values[1:].norm(), atol=1e-4, rtol=1e-3)


def test_the_file_holds_each_block_weight_once(source: Path, tmp_path: Path) -> None:
    rrt_edge.convert(source, tmp_path / "out", loops=3, rank=4)
    with safe_open(tmp_path / "out" / "model.safetensors", framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    queries = [name for name in shapes if name.endswith("q_proj.weight")]
    assert queries == [f"model.block.{k}.self_attn.q_proj.weight" for k in range(4)]
    assert shapes["model.block.0.mlp.down_proj.lora_A"] == (3, 4, 100)
    assert shapes["model.block.0.mlp.down_proj.lora_B"] == (3, 72, 4)
    assert "lm_head.weight" not in shapes  # tied to the embedding


def test_the_block_is_held_once_in_memory(recursive: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(recursive)
    held = sum(p.numel() for p in model.model.block.parameters() if p.dim() == 2)
    source_layer = 72 * 96 * 2 + 72 * 32 * 2 + 72 * 100 * 3
    assert held == 4 * source_layer


def test_generate_with_the_cache_equals_generate_without(recursive: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(recursive)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    cached = model.generate(IDS, **options)
    assert torch.equal(cached, model.generate(IDS, **options, use_cache=False))
    assert cached.shape == (2, 23)


GEMMA_2B = GemmaConfig(
    hidden_size=2048, intermediate_size=16384, num_hidden_layers=18, num_attention_heads=8, num_key_value_heads=1,
    head_dim=256, vocab_size=256000, tie_word_embeddings=True,
)  # fmt: skip
TINYLLAMA = LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
    vocab_size=32000,
)  # fmt: skip
PYTHIA_1B = GPTNeoXConfig(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=8, vocab_size=50304,
    rotary_pct=0.25,
)  # fmt: skip
# Non-embedding parameters in billions: of the source, by rank at two loops, by rank at three.
PAPER: dict[str, tuple[PreTrainedConfig, float, dict[int, float], dict[int, float]]] = {
    "gemma": (
        GEMMA_2B, 1.98, {0: 0.99, 64: 1.07, 128: 1.15, 256: 1.30, 512: 1.60},
        {0: 0.66, 64: 0.74, 128: 0.82, 256: 0.97, 512: 1.27},
    ),
    "tinyllama": (TINYLLAMA, 0.97, {0: 0.48, 64: 0.53, 128: 0.58, 256: 0.68, 512: 0.86}, {}),
    "pythia": (PYTHIA_1B, 0.81, {0: 0.40, 64: 0.44, 128: 0.48, 256: 0.55, 512: 0.70}, {}),
}  # fmt: skip
CELLS = [
    (model, loops, rank, size)
    for model, (_, _, *sizes) in PAPER.items()
    for loops, by_rank in zip((2, 3), sizes, strict=True)
    for rank, size in by_rank.items()
]


@pytest.mark.parametrize("model, loops, rank, size", CELLS)
def test_the_papers_parameter_counts(model: str, loops: int, rank: int, size: float) -> None:
    text, source_size, *_ = PAPER[model]
    with torch.device("meta"):
        recursive = rrt_edge.RecursiveForCausalLM(rrt_edge.RecursiveConfig(text_config=text, loops=loops, rank=rank))
    counted = count_parameters(recursive)
    hidden, inner, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    q, kv = (2048, {"gemma": 256, "tinyllama": 256, "pythia": 2048}[model])
    sides = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden), (hidden, inner), (inner, hidden)]
    if model == "pythia":
        vectors = 2 * 2 * hidden + sum(o for _, o in sides)  # two LayerNorms; a bias for every linear
        final_norm = 2 * hidden
    else:
        sides.append((hidden, inner))  # gated
        vectors, final_norm = 2 * hidden, hidden
    layer = sum(i * o for i, o in sides) + vectors
    lora = layers * sum(min(rank, i, o) * (i + o) for i, o in sides)
    assert counted.non_embedding == layers // loops * layer + final_norm + lora
    assert abs(counted.non_embedding / 1e9 - size) < 0.01
    assert counted.total - counted.non_embedding == text.vocab_size * hidden * (1 if text.tie_word_embeddings else 2)
    assert counted.source_non_embedding == layers * layer + final_norm
    assert abs(counted.source_non_embedding / 1e9 - source_size) < 0.01


def test_stepwise_keeps_the_papers_layers() -> None:
    def chosen(layers: int, loops: int) -> list[int | None]:
        config = rrt_edge.RecursiveConfig(
            text_config=LlamaConfig(num_hidden_layers=layers), loops=loops, init="stepwise"
        )
        return [shared_source(config, k) for k in range(layers // loops)]

    assert chosen(6, 2) == [0, 2, 5]
    assert chosen(18, 2) == [0, 2, 4, 6, 8, 11, 13, 15, 17]  # section 2.2, counted from 0


def test_lora_starts_from_the_truncated_svd() -> None:
    residual = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    a, b, kept, energy = residual_factors(residual, 5)
    u, s, vt = np.linalg.svd(residual.numpy())
    assert a.shape == (5, 30) and b.shape == (20, 5)
    np.testing.assert_allclose((b @ a).numpy(), (u[:, :5] * s[:5]) @ vt[:5], atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(b.numpy(), axis=0), s[:5], rtol=1e-4)  # B holds U S, A holds Vt
    np.testing.assert_allclose((kept, energy), (np.sum(s[:5] ** 2), np.sum(residual.numpy() ** 2)), rtol=1e-4)


def test_a_zero_residual_gets_gaussian_a_and_zero_b() -> None:
    a, b, kept, energy = residual_factors(torch.zeros(20, 30), 5)
    assert a.std() > 0 and not b.any() and kept == energy == 0


def test_ranks_differ_by_component_and_may_be_a_share_of_full_rank(source: Path, tmp_path: Path) -> None:
    rrt_edge.convert(source, tmp_path / "out", loops=3, rank=0.25, component_ranks={"kv": 3, "ffn": 0})
    layer = AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.block[0]
    assert layer.self_attn.q_proj.lora_A.shape == (3, 18, 72)  # a quarter of min(72, 96)
    assert layer.self_attn.v_proj.lora_A.shape == (3, 3, 72)
    assert not layer.mlp.up_proj.ranks["up"] and not hasattr(layer.mlp.up_proj, "lora_A")


def test_zero_adapters_change_nothing(source: Path, tmp_path: Path) -> None:
    rrt_edge.convert(source, tmp_path / "zero", loops=3, rank=4, lora_init="zero", init="stepwise")
    rrt_edge.convert(source, tmp_path / "none", loops=3, rank=0, init="stepwise")
    zero, none = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("zero", "none"))
    assert torch.equal(zero(IDS).logits, none(IDS).logits)
    assert zero.model.block[0].mlp.up_proj.lora_A.std() > 0


def test_a_random_block_keeps_the_rest_of_the_source(source: Path, tmp_path: Path) -> None:
    rrt_edge.convert(source, tmp_path / "out", loops=3, init="random")
    ours, theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out"), LlamaForCausalLM.from_pretrained(source)
    assert torch.equal(ours.model.embed_tokens.weight, theirs.model.embed_tokens.weight)
    random = ours.model.block[0].mlp.up_proj.weight
    assert abs(random.std() - 0.1) < 0.01  # the config's initializer_range
    assert not torch.equal(random[:72, :72], ours.model.block[1].mlp.up_proj.weight[:72, :72])


def test_the_energy_kept_is_reported_with_the_worst_layer(source: Path, tmp_path: Path) -> None:
    report = rrt_edge.convert(source, tmp_path / "out", loops=3, rank=4)
    theirs = LlamaForCausalLM.from_pretrained(source)
    weights = [layer.mlp.down_proj.weight.detach().numpy() for layer in theirs.model.layers]
    shares, totals = {}, np.zeros(2)
    for layer, weight in enumerate(weights):
        spectrum = np.linalg.svd(weight - np.mean(weights[layer % 4 :: 4], axis=0), compute_uv=False) ** 2
        shares[layer] = spectrum[:4].sum() / spectrum.sum()
        totals += spectrum[:4].sum(), spectrum.sum()
    found = {row.projection: row for row in report.kept}
    assert list(found) == ["q", "k", "v", "o", "gate", "up", "down"]
    down, worst = found["down"], min(shares, key=lambda layer: shares[layer])
    assert down.worst_layer == worst
    np.testing.assert_allclose((down.kept, down.worst), (totals[0] / totals[1], shares[worst]), rtol=1e-4)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"loops": 5}, "does not divide the 12 layers; choose one of 1, 2, 3, 4, 6, 12"),
        ({"loops": 0}, "loops 0"),
        ({"rank": -1}, "rank -1 is negative"),
        ({"init": "best"}, "init 'best'"),
        ({"order": "best"}, "order 'best'"),
        ({"lora_init": "best"}, "lora-init 'best'"),
        ({"rank": 2.5}, "rank 2.5 is neither a whole number nor a share of full rank"),
        ({"parameters": 0}, "parameters 0: must be a number above 0 and at most 1"),
        ({"parameters": 0.5, "rank": 2}, "parameters 0.5: chooses the ranks itself; leave out one of them"),
        ({"parameters": 0.5, "component_ranks": {"kv": 2}}, "leave out one of them"),
        (
            {"parameters": 0.1},
            "parameters 0.1: 2 loops have 0.5.* of the source's already without adapters; allow more",
        ),
        ({"component_ranks": {"kv": -1}}, "kv rank -1 is negative"),
        ({"component_ranks": {"mlp": 1}}, "component_ranks names 'mlp'; choose from attention, ffn, kv"),
    ],
)
def test_impossible_options_are_refused_and_leave_nothing(
    source: Path, tmp_path: Path, options: dict, message: str
) -> None:
    with pytest.raises(rrt_edge.BadInputError, match=message):
        rrt_edge.convert(source, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


def test_only_a_recursive_checkpoint_is_replaced(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rrt_edge.convert(source, out, loops=2)
    rrt_edge.convert(source, out, loops=3)
    assert AutoModelForCausalLM.from_pretrained(out).config.loops == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(rrt_edge.BadInputError, match="exists and is not a recursive checkpoint"):
        rrt_edge.convert(source, tmp_path / "mine", loops=2)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sources_stay_in_their_type(
    make_source: Callable[..., Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = make_source()
    LlamaForCausalLM.from_pretrained(folder).to(dtype).save_pretrained(folder)
    rrt_edge.convert(folder, tmp_path / "out", loops=2, rank=2)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto").dtype == dtype


def test_an_interrupted_conversion_leaves_nothing(source: Path, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        assert not (tmp_path / "out").exists()
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rrt_edge.convert(source, tmp_path / "out", loops=3, rank=2, progress=interrupt)
    assert list(tmp_path.iterdir()) == []
    rrt_edge.convert(source, tmp_path / "out", loops=3, rank=2)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.loops == 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_conversion_takes_no_more_memory_than_its_result_and_two_layers(
    make_source: Callable[..., Path], tmp_path: Path
) -> None:
    shape = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 16, "vocab_size": 300}
    folder = make_source(**shape, num_attention_heads=8, num_key_value_heads=8, head_dim=64)
    code = f"""
import rrt_edge.model.modeling, transformers.models.llama.modeling_llama
import torch
from rrt_edge.conversion.conversion import convert
from rrt_edge.runtime.system.memory import peak_memory_bytes
torch.linalg.eigh(torch.eye(600) @ torch.eye(600))  # what the libraries themselves take
before = peak_memory_bytes()
print(convert({str(folder)!r}, {str(tmp_path / "out")!r}, rank=8).peak_memory_bytes - before)
"""
    taken = int(subprocess.run([sys.executable, "-P", "-c", code], check=True, stdout=subprocess.PIPE).stdout)
    layer = 4 * (4 * 512 * 512 + 3 * 512 * 2048)
    assert taken <= (tmp_path / "out" / "model.safetensors").stat().st_size + 2 * layer
