"""A plain model of fewer layers: those of a teacher whose absence costs least, left out one after another.

    python samples/proofread/reduced_model.py build/proofread/teacher build/proofread/calibrate.jsonl \\
        build/proofread/reduced-21 --layers 21

It is what a recursive model of as many parameters is compared with. At each turn every layer left is tried: the one
goes without which the loss of the replies is lowest.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pairs
import torch
from threaded_training import Example, encode, share_of_loss
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=21)
    parser.add_argument("--texts", type=int, default=24, help="on which layers are tried")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16, on a processor that is faster in it")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
    model = AutoModelForCausalLM.from_pretrained(arguments.teacher, dtype=torch.float32).eval()
    examples = [encode(tokenizer, *pair) for pair in pairs.read_pairs(arguments.data)[: arguments.texts]]
    whole, kept = list(model.model.layers), list(range(len(model.model.layers)))
    print(f"{len(kept)} layers: loss {loss_of(model, examples, arguments.bf16):.4f}", flush=True)
    while len(kept) > arguments.layers:
        tried = {}
        for layer in kept:
            keep(model, whole, [index for index in kept if index != layer])
            tried[layer] = loss_of(model, examples, arguments.bf16)
        least = min(tried, key=lambda layer: tried[layer])
        kept.remove(least)
        print(f"{len(kept)} layers, without {least}: loss {tried[least]:.4f}", flush=True)
    keep(model, whole, kept)
    model.config.num_hidden_layers = len(kept)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"saved {arguments.out}: layers {', '.join(map(str, kept))}")


def keep(model: PreTrainedModel, whole: Sequence[nn.Module], kept: Sequence[int]) -> None:
    """Let a model have only some of its layers, numbered anew."""
    model.model.layers = nn.ModuleList(whole[index] for index in kept)
    for number, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = number
    model.config.num_hidden_layers = len(kept)


def loss_of(model: PreTrainedModel, examples: Sequence[Example], bf16: bool) -> float:
    """The mean loss over reply tokens."""
    return share_of_loss(model, sorted(examples, key=len), sum(len(example.reply) for example in examples), bf16=bf16)


if __name__ == "__main__":
    main()
