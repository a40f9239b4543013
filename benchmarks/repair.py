"""The error of 4 bits behind each loop of a looped model, with rounding to the nearest, with data, and with repair.

    python benchmarks/repair.py [--ranks 8,32] [--own 0]

A model of random weights runs a block of six layers four times; texts are drawn from a random table of which token
follows which. `--own R` gives it adapters of its own, which repair fits anew.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig

from rrt_edge.exporters.data_rounding import RoundedToTexts
from rrt_edge.exporters.repair import Repaired
from rrt_edge.model.configuration import RecursiveConfig
from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.quantisation.blocks import Quantized, dequantize, quantize
from rrt_edge.quantisation.plan import Bits

LOOPS, LAYERS, HIDDEN, VOCABULARY = 4, 6, 192, 512
TEXT_TOKENS = 128
BITS = 4


class Weights:
    """The parameters of a model in memory, as the exporter reads them."""

    def __init__(self, model: RecursiveForCausalLM) -> None:
        self.config: RecursiveConfig = model.config
        self._parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def __contains__(self, name: str) -> bool:
        return name in self._parameters

    def tensor(self, name: str, shape: object = None, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._parameters[name].to(dtype, copy=True)

    def close(self) -> None:
        """Nothing is open."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", default="8,32")
    parser.add_argument("--own", type=int, default=0, help="rank of the model's own adapters")
    arguments = parser.parse_args()
    exact = random_model(arguments.own)
    weights, fitted, others = Weights(exact), texts(seed=2, count=48), texts(seed=3, count=8)
    names = [name for name, own in exact.named_parameters() if name.startswith("model.block.") and own.dim() == 2]
    nearest = {name: quantize(weights.tensor(name).numpy(), BITS) for name in names}
    plan = Bits(block=BITS, lora=BITS, embedding=8, head=8)
    block = RoundedToTexts(weights, fitted, plan, torch.float32)
    rounded = {name: block.matrix(name) for name in names}
    print(f"| {BITS} bits | " + " | ".join(f"loop {loop}" for loop in range(1, LOOPS + 1)) + " | last to first |")
    print("|---" * (LOOPS + 2) + "|")
    report("to the nearest", losses(exact, weights, nearest, others))
    report("rounded with data", losses(exact, weights, rounded, others))
    for rank in [0] if arguments.own else map(int, arguments.ranks.split(",")):
        made = Repaired(weights, rounded.__getitem__, fitted, plan, torch.float32, rank, None)
        report(f"and repaired, rank {rank or arguments.own}", losses(exact, made, rounded, others))


def random_model(own_rank: int) -> RecursiveForCausalLM:
    """Each layer changes the state about as much as those of trained models do."""
    torch.manual_seed(0)
    text = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, intermediate_size=2 * HIDDEN, num_hidden_layers=LOOPS * LAYERS,
        num_attention_heads=6, num_key_value_heads=6, tie_word_embeddings=False, pad_token_id=None,
    )  # fmt: skip
    model = RecursiveForCausalLM(RecursiveConfig(text_config=text, loops=LOOPS, rank=own_rank)).eval()
    with torch.no_grad():
        for name, own in model.named_parameters():
            if ".lora_" in name:
                own.normal_(std=0.06 if "lora_A" in name else 0.02)
            elif name.startswith("model.block.") and own.dim() == 2:
                own.normal_(std=own.shape[1] ** -0.5)
        model.lm_head.weight.normal_(std=2 / HIDDEN**0.5)
        model.model.embed_tokens.weight.normal_()
    return model


def texts(seed: int, count: int) -> list[list[int]]:
    table = torch.softmax(3 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1)), -1)
    draw = torch.Generator().manual_seed(seed)
    drawn = []
    for _ in range(count):
        ids = [int(torch.randint(0, VOCABULARY, (1,), generator=draw))]
        while len(ids) < TEXT_TOKENS:
            ids.append(int(torch.multinomial(table[ids[-1]], 1, generator=draw)))
        drawn.append(ids)
    return drawn


@torch.no_grad()
def losses(
    exact: RecursiveForCausalLM, made: Weights | Repaired, matrices: dict[str, Quantized], on: list[list[int]]
) -> list[float]:
    """Mean KL of each depth's tokens from the exact model's."""
    model, sums = RecursiveForCausalLM(made.config).eval(), np.zeros(LOOPS)
    for name, own in model.named_parameters():
        if name in matrices:
            own.copy_(torch.from_numpy(dequantize(matrices[name])))
        elif ".lora_" in name:
            pairs = [dequantize(quantize(factor.numpy(), BITS)) for factor in made.tensor(name)]
            own.copy_(torch.from_numpy(np.stack(pairs)))
        else:
            own.copy_(made.tensor(name))
    for ids in on:
        theirs, ours = (each(torch.tensor([ids]), output_depths=True).depth_logits for each in (exact, model))
        for depth, (p, q) in enumerate(zip(theirs, ours, strict=True)):
            own_p, own_q = (torch.distributions.Categorical(logits=logits.double()) for logits in (p, q))
            sums[depth] += float(torch.distributions.kl_divergence(own_p, own_q).mean())
    return list(sums / len(on))


def report(name: str, found: list[float]) -> None:
    print(f"| {name} | " + " | ".join(f"{loss:.3f}" for loss in found) + f" | {found[-1] / found[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
