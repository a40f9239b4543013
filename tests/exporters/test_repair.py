"""Adapters that take up what rounding lost: every depth comes nearer, and full rank gives the source back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig

import rrt_edge
from rrt_edge.exporters import export, verify
from rrt_edge.exporters.checkpoint_weights import RecursiveTensors
from rrt_edge.exporters.data_rounding import RoundedToTexts
from rrt_edge.exporters.repair import Repaired
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.quantisation.blocks import Quantized, dequantize
from rrt_edge.quantisation.plan import Bits
from tests.exporters.test_data_rounding import random_texts

VOCABULARY = 96
PAIRS = [("cat", "hen"), ("dog", "fox"), ("cow", "ox"), ("hen", "cat"), ("fox", "dog"), ("ox", "cow")]


class InMemory:
    """The parameters of a model that is in no folder."""

    def __init__(self, model: RecursiveForCausalLM) -> None:
        self.config: RecursiveConfig = model.config
        self._parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def tensor(self, name: str, shape: object = None, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self._parameters[name].to(dtype, copy=True)

    def close(self) -> None:
        """Nothing is open."""


def looped(rank: int, own_vectors: bool = False) -> RecursiveForCausalLM:
    """Three loops over two layers, each of which changes the state as much as the layers of a trained model."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=None,
    )  # fmt: skip
    model = RecursiveForCausalLM(RecursiveConfig(text_config=text, loops=3, rank=rank, own_vectors=own_vectors)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and "gate" not in name.split(".")[0]:
                parameter.normal_(
                    std=0.3 / parameter.shape[-1] ** 0.5 if "lora_B" in name else parameter.shape[-1] ** -0.5
                )
    return model


def rounded(weights: RecursiveTensors, texts: list[list[int]]) -> dict[str, Quantized]:
    names = [
        name for name, parameter in RecursiveForCausalLM(weights.config).named_parameters() if parameter.dim() == 2
    ]
    block = RoundedToTexts(weights, texts, Bits(4, 4, 8, 8), torch.float32)
    return {name: block.matrix(name) for name in names if name.startswith("model.block.")}


@torch.no_grad()
def losses(exact: RecursiveForCausalLM, made: RecursiveTensors, matrices: dict[str, Quantized]) -> list[float]:
    """KL of each depth's tokens from the exact model's, on texts that nothing was fitted to."""
    model = RecursiveForCausalLM(made.config).eval()
    for name, parameter in model.named_parameters():
        matrix = matrices.get(name)
        parameter.copy_(made.tensor(name) if matrix is None else torch.from_numpy(dequantize(matrix)))
    sums = np.zeros(made.config.loops)
    for ids in random_texts(VOCABULARY, seed=1):
        theirs, ours = (each(torch.tensor([ids]), output_depths=True).depth_logits for each in (exact, model))
        for depth, (p, q) in enumerate(zip(theirs, ours, strict=True)):
            own, other = (torch.distributions.Categorical(logits=logits.double()) for logits in (p, q))
            sums[depth] += float(torch.distributions.kl_divergence(own, other).mean())
    return list(sums)


def repaired(weights: InMemory, matrices: dict[str, Quantized], rank: int, adapter_bits: int = 4) -> Repaired:
    bits = Bits(block=adapter_bits, lora=adapter_bits, embedding=8, head=8)
    return Repaired(weights, matrices.__getitem__, random_texts(VOCABULARY), bits, torch.float32, rank, None)


def test_every_depth_comes_nearer_and_the_last_is_not_left_behind() -> None:
    exact = looped(rank=0)
    weights = InMemory(exact)
    matrices = rounded(weights, random_texts(VOCABULARY))
    without = losses(exact, weights, matrices)
    with_adapters = losses(exact, repaired(weights, matrices, rank=8), matrices)
    assert all(ours < 0.9 * theirs for ours, theirs in zip(with_adapters, without, strict=True))
    assert with_adapters[-1] < 2 * with_adapters[0]


def test_adapters_of_full_rank_give_the_source_back() -> None:
    exact = looped(rank=0)
    weights = InMemory(exact)
    matrices = rounded(weights, random_texts(VOCABULARY))
    without = losses(exact, weights, matrices)
    whole = losses(exact, repaired(weights, matrices, rank=64, adapter_bits=8), matrices)
    assert all(ours < 0.01 * theirs for ours, theirs in zip(whole, without, strict=True))


@pytest.mark.parametrize("own_vectors", [False, True])
def test_adapters_that_a_model_has_are_fitted_anew(own_vectors: bool) -> None:
    exact = looped(rank=8, own_vectors=own_vectors)
    weights = InMemory(exact)
    matrices = rounded(weights, random_texts(VOCABULARY))
    made = repaired(weights, matrices, rank=0)
    assert made.config.rank == 8
    assert sum(losses(exact, made, matrices)) < 0.97 * sum(losses(exact, weights, matrices))


def test_export_repairs_a_source_without_adapters(source: Path, recursive: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": f"The {one} sees the {two}. " * 12}) + "\n" for one, two in PAIRS))
    found = {}
    for rank in (0, 32):  # half of the source's width
        bundle = export(source, tmp_path / f"{rank}", bits=4, loops=1, data=data, repair_rank=rank).bundle
        report = verify(bundle, source=source)
        assert report.hashes_ok
        found[rank] = report.depths[-1].kl
    assert found[32] < 0.5 * found[0]
    with pytest.raises(rrt_edge.BadInputError, match="repair-rank: adapters take up what rounding lost on some texts"):
        export(source, tmp_path / "c", bits=4, loops=1, repair_rank=8)
    with pytest.raises(rrt_edge.BadInputError, match="has adapters, which data fits anew"):
        export(recursive, tmp_path / "c", bits=4, data=data, repair_rank=8)
    assert not (tmp_path / "c").exists()
