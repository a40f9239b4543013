"""The exit gate beside other signs of confidence: agreement with full depth at the same mean depth, and calibration.

    python benchmarks/gate.py build/miniature/exit-equal-0/trained

Trains the gate of a recursive checkpoint of paper_miniature.py on phrasings that its body was not trained on, and
compares it on others: softmax's largest probability, its distance from the second (both need the LM head after each
loop), and how little the loop changed the hidden state (CALM, arXiv 2207.07061). Two loops only.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from paper_miniature import NAMES, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

import rrt_edge
from rrt_edge.model.text import encode_chat
from rrt_edge.runtime.scoring.metrics import Scores
from rrt_edge.training.data import PadCollator
from rrt_edge.training.options import TrainOptions
from rrt_edge.training.teacher import predicting, text_of
from rrt_edge.training.training import train

MEAN_DEPTHS = (1.2, 1.4, 1.6, 1.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--rounds", type=int, default=20, help="times each name is asked in the gate's training")
    arguments = parser.parse_args()
    answers = recipe.load_answers()
    rng = random.Random(7)
    names = rng.sample(sorted(answers), NAMES)
    templates = recipe.phrasings()

    def chats(choices: list[str], rounds: int) -> list[list[dict[str, str]]]:
        return [recipe.turn(rng.choice(choices).format(name), answers[name]) for _ in range(rounds) for name in names]

    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "gate.jsonl", Path(folder) / "gated"
        lines = [json.dumps({"messages": chat}) for chat in chats(templates.gate, arguments.rounds)]
        data.write_text("\n".join(lines) + "\n", "utf-8")
        options = TrainOptions(stages=("gate",), epochs=6, batch=32, max_length=160, save_steps=10**9)
        train(arguments.checkpoint, out, data=data, options=options)
        model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(out)
    examples = [encode_chat(tokenizer, chat) for chat in chats(templates.held_out, 5)]
    signs, agrees = measure(model, [examples[at : at + 50] for at in range(0, len(examples), 50)])
    print(f"{len(agrees):,} tokens, {agrees.mean():.2%} agree after loop 1")
    ones = np.ones(len(agrees), np.float32)
    both = np.stack([agrees, np.ones(len(agrees), np.bool_)])
    nothing = np.zeros((2, len(agrees)), np.float32)
    gate = Scores(both, both, nothing, np.stack([signs["gate"], ones]), np.arange(len(agrees)))
    print(f"expected calibration error of the gate: {gate.reliability().expected_error:.4f}")
    print("\n| mean depth | " + " | ".join(signs) + " |\n|---|" + "---|" * len(signs))
    for depth in MEAN_DEPTHS:
        shares = [agreement(sign, agrees, 2 - depth) for sign in signs.values()]
        print(f"| {depth} | " + " | ".join(f"{share:.2%}" for share in shares) + " |")


@torch.no_grad()
def measure(
    model: rrt_edge.RecursiveForCausalLM, batches: list[list[dict[str, list[int]]]]
) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.bool_]]:
    """Signs of confidence after loop 1 [N], higher is surer, and whether its likeliest token is loop 2's."""
    found: dict[str, list[torch.Tensor]] = {}
    agrees = []
    collate = PadCollator(0)
    for examples in batches:
        batch = collate(examples)
        asked = predicting(batch["labels"])
        first, last = (hidden[asked] for hidden in model.model(**text_of(batch)))
        before = model.model.norm(model.model.embed(batch["input_ids"]))[asked]
        shares = torch.softmax(model.lm_head(first), dim=-1)
        two = shares.topk(2, dim=-1).values
        assert model.exit_gate is not None
        signs = {
            "gate": torch.sigmoid(model.exit_gate(first, 0)),
            "largest probability": two[:, 0],
            "top-2 margin": two[:, 0] - two[:, 1],
            "hidden state's change": torch.cosine_similarity(first, before, dim=-1),
        }
        for name, sign in signs.items():
            found.setdefault(name, []).append(sign)
        agrees.append(shares.argmax(-1) == model.lm_head(last).argmax(-1))
    return {name: torch.cat(parts).numpy() for name, parts in found.items()}, torch.cat(agrees).numpy()


def agreement(sign: NDArray[np.float32], agrees: NDArray[np.bool_], share: float) -> float:
    """Of all tokens, where the share with the highest signs leaves after loop 1."""
    leaving = np.argsort(-sign, kind="stable")[: round(share * len(sign))]
    return 1 - float((~agrees[leaving]).sum()) / len(sign)


if __name__ == "__main__":
    main()
