"""Rounding with data: the bundle's block is what whole torch models say it should be, and nearer to the source."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedModel

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.conversion import recursive_config
from rrt_edge.conversion.converted import Converted
from rrt_edge.conversion.options import ConvertOptions
from rrt_edge.exporters import export, verify
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors
from rrt_edge.exporters.data_rounding import RoundedToTexts
from rrt_edge.quantisation.blocks import Quantized, dequantize, quantize
from rrt_edge.quantisation.compensated import Inputs, compensated
from rrt_edge.quantisation.plan import Bits
from tests.families import random_model

FOUR = Bits(4, 4, 4, 4)
GROUPS = (  # linears with one input, in the order in which they run
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)


def random_texts(vocabulary: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, 48).tolist() for _ in range(12)]


def matrix(rounded: RoundedToTexts, name: str) -> np.ndarray:
    own = rounded.matrix(name)
    assert isinstance(own, Quantized) and own.bits == 4
    return dequantize(own)


def inputs(model: PreTrainedModel, path: str, texts: list[list[int]]) -> np.ndarray:
    """[tokens, in]: what reaches a linear of the whole model."""
    rows: list[Tensor] = []
    hook = model.get_submodule(path).register_forward_pre_hook(lambda _, args: rows.append(args[0][0]))
    with torch.no_grad():
        for ids in texts:
            model(torch.tensor([ids]))
    hook.remove()
    return torch.cat(rows).double().numpy()


def test_each_matrix_is_rounded_on_the_inputs_that_those_before_it_give(source: Path) -> None:
    theirs, ours = (LlamaForCausalLM.from_pretrained(source) for _ in range(2))
    texts = random_texts(theirs.config.vocab_size)
    with closing(Checkpoint(source)) as checkpoint:
        config = recursive_config(checkpoint.config, ConvertOptions(loops=1), None)
        rounded = RoundedToTexts(Converted(checkpoint, config, torch.float32), texts, FOUR, torch.float32)
    for layer in range(3):
        for group in GROUPS:
            aims, own = (inputs(model, f"model.layers.{layer}.{group[0]}", texts) for model in (theirs, ours))
            moment = own.T @ own
            moment += 0.01 * moment.diagonal().mean() * np.eye(len(moment))
            guess = (aims - own).T @ own @ np.linalg.inv(moment)
            for path in group:
                weight = theirs.model.layers[layer].get_submodule(path).weight.detach().numpy()
                aim = (weight + 0.7 * weight @ guess).astype(np.float32)
                expected = dequantize(compensated(aim, Inputs.of(moment), 4))
                made = matrix(rounded, f"model.block.{layer}.{path}.weight")
                same = np.isclose(made, expected, rtol=1e-2, atol=1e-4).mean()
                assert same > 0.98, (layer, path, same)  # a rounding error may tip a code, which tips those behind it
                linear = ours.model.layers[layer].get_submodule(path)
                linear.weight = nn.Parameter(torch.from_numpy(made), requires_grad=False)


@torch.no_grad()
def away(made: RecursiveTensors, rounded: RoundedToTexts | None, texts: list[list[int]]) -> float:
    """Mean square of what a recursive model's logits are away from at all depths, with its block rounded."""
    exact, model = rrt_edge.RecursiveForCausalLM(made.config).eval(), rrt_edge.RecursiveForCausalLM(made.config).eval()
    for name, parameter in exact.named_parameters():
        parameter.copy_(made.tensor(name))
    for (name, parameter), source in zip(model.named_parameters(), exact.parameters(), strict=True):
        parameter.copy_(source)
        if name.startswith("model.block.") and parameter.dim() == 2 and name.endswith("_proj.weight"):
            own = matrix(rounded, name) if rounded is not None else dequantize(quantize(source.numpy(), 4))
            parameter.copy_(torch.from_numpy(own))
    pairs = [(exact(torch.tensor([ids])).logits, model(torch.tensor([ids])).logits) for ids in texts]
    return float(np.mean([(ours - theirs).square().mean() for ours, theirs in pairs]))


@pytest.mark.parametrize("family", ["qwen2", "gemma3", "phi3", "olmo2"])
def test_every_family_is_nearer_to_its_source(tmp_path: Path, family: str) -> None:
    random_model(family).save_pretrained(tmp_path)
    with closing(Checkpoint(tmp_path)) as checkpoint:
        config = recursive_config(checkpoint.config, ConvertOptions(loops=1), None)
        made = Converted(checkpoint, config, torch.float32)
        rounded = RoundedToTexts(made, random_texts(config.text_config.vocab_size), FOUR, torch.float32)
        held_out = random_texts(config.text_config.vocab_size, seed=1)
        assert away(made, rounded, held_out) < 0.9 * away(made, None, held_out)


def test_a_shared_matrix_is_rounded_for_all_its_depths(recursive: Path) -> None:
    with closing(Checkpoint(recursive)) as made:
        vocabulary = made.config.text_config.vocab_size
        rounded = RoundedToTexts(made, random_texts(vocabulary), FOUR, torch.float32)
        held_out = random_texts(vocabulary, seed=1)
        assert away(made, rounded, held_out) < 0.9 * away(made, None, held_out)


def test_a_depth_begins_where_the_model_is_then(tmp_path: Path) -> None:
    """Also where the layers of a depth attend otherwise than those of the depth before: here one in four sees all."""
    random_model("gemma3").save_pretrained(tmp_path)
    with closing(Checkpoint(tmp_path)) as checkpoint:
        config = recursive_config(checkpoint.config, ConvertOptions(loops=3), None)
        made = Converted(checkpoint, config, torch.float32)
        texts = random_texts(config.text_config.vocab_size)
        sides = RoundedToTexts(made, texts, FOUR, torch.float32)._sides
        model = rrt_edge.RecursiveForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(made.tensor(name))
            for number, ids in enumerate(texts[:3]):
                normed = model.model(torch.tensor([ids]))
                for loop in (0, 1):
                    ours = model.model.norm(sides[loop + 1]._source[number])
                    torch.testing.assert_close(ours, normed[loop], atol=1e-4, rtol=1e-3)


def test_export_takes_texts_and_keeps_adapters(recursive: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "The cat sees the hen. " * 40}) + "\n")
    data = tmp_path / "texts.jsonl"
    report = verify(export(recursive, tmp_path / "eight", bits=8, data=data).bundle, source=recursive)
    assert report.hashes_ok and all(depth.kl < 0.001 for depth in report.depths)
    sizes = [export(recursive, tmp_path / name, bits=4, data=given).bytes for name, given in (("a", data), ("b", None))]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)  # the manifest and the names differ, the weights do not
    again = export(recursive, tmp_path / "again", bits=4, data=data)
    files = [(Path(folder) / "model.onnx.data").read_bytes() for folder in (tmp_path / "a", again.bundle)]
    assert files[0] == files[1]
    with pytest.raises(rrt_edge.BadInputError, match="data is what 4 or 8 bits are rounded with"):
        export(recursive, tmp_path / "c", bits=16, data=data)
    with pytest.raises(rrt_edge.BadInputError, match="no such data file"):
        export(recursive, tmp_path / "c", data=tmp_path / "none.jsonl")
    assert not (tmp_path / "c").exists()


def test_an_unshared_source_takes_texts_with_one_loop(source: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.txt"
    data.write_text("The cat sees the hen. " * 40)
    export(source, tmp_path / "b", bits=4, loops=1, data=data)
    with pytest.raises(rrt_edge.BadInputError, match="data goes with loops 1 or a recursive checkpoint"):
        export(source, tmp_path / "c", bits=4, loops=3, data=data)
