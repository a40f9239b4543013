"""Choose the LoRA rank by measurement: the same short uptraining at several ranks, then exact answers and sizes.

    python samples/pydoc/compare_ranks.py build/pydoc [--ranks 0,8,16,32] [--loops 2] [--lr 1.5e-3]

Reads train.jsonl and calibrate.jsonl of the folder recipe.py wrote (`--rounds 5` is enough here) and prints a row for
each rank. Full-depth answers in phrasings no training saw; sizes are those of the 4-bit bundle.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from evaluate import evaluate_checkpoint, read_chats

import rrt_edge
from rrt_edge.training import TrainOptions, train

TEACHER = Path(__file__).parent / "teacher"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--ranks", default="0,8,16,32")
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1.5e-3)
    arguments = parser.parse_args()
    chats = read_chats(arguments.data / "calibrate.jsonl")
    options = TrainOptions(stages=("uptrain",), lr=arguments.lr, save_steps=100_000)
    for rank in map(int, arguments.ranks.split(",")):
        folder = arguments.data / f"rank-{rank}"
        converted = rrt_edge.convert(TEACHER, folder / "converted", loops=arguments.loops, rank=rank)
        trained = train(
            converted.out, folder / "trained", data=arguments.data / "train.jsonl", teacher=TEACHER, options=options
        )
        found = evaluate_checkpoint(folder / "trained", chats)
        bundle = rrt_edge.export(folder / "trained", folder / "bundle")
        print(
            f"rank {rank}: {converted.parameters.non_embedding:,} parameters outside the embedding, bundle "
            f"{bundle.bytes:,} bytes, mean loss {trained.final_loss['uptrain']}, exact {found['exact']:.1%}, "
            f"perplexity {found['perplexity']:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
