"""How often drafts must stand for lossless mode to win, by the number of rows a round verifies.

    python benchmarks/break_even.py BUNDLE [--threads 2] [--repeats 25]

A round of n rows drafts n - 1 tokens with loop 1, then runs all n through the other loops; it gives
1 + a + .. + a^(n-1) tokens where a draft stands with probability a. Rounds of all lengths in turn, behind 320 tokens,
medians, against a token at full depth. The share at which a round wins nothing is the break-even.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from rrt_edge.runtime import ExitPolicy, Model
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.lossless import LONGEST, SHALLOW

KV = 320


def break_even(rows: int, cost: float) -> float | None:
    """The acceptance at which a round gives as many tokens as full depth in its time; None where none does."""
    if cost > rows:
        return None
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if sum(middle**index for index in range(rows)) < cost else (low, middle)
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=25)
    arguments = parser.parse_args()
    with Model.load(arguments.bundle, threads=arguments.threads) as model:
        decoder = Decoder(model.runner)
        ids = np.random.default_rng(0).integers(3, model.manifest.architecture.vocabulary, KV).tolist()
        decoder.prefill(ids, ExitPolicy())
        times: dict[int, list[float]] = {rows: [] for rows in range(1, LONGEST + 1)}
        for repeat in range(arguments.repeats + 1):
            for rows, found in times.items():
                started = time.perf_counter()
                for token in ids[: rows - 1]:
                    decoder.step(token, SHALLOW)
                decoder.verify(rows, ids[rows - 1])
                if repeat:  # the first is a warm-up
                    found.append(time.perf_counter() - started)
                decoder.rewind(KV)
    alone = statistics.median(times[1])
    print(f"a token at full depth: {alone * 1e3:.1f} ms\n")
    print("| rows of a round | time, in tokens at full depth | drafts that must stand | gain if all stand |")
    print("|---|---|---|---|")
    for rows in range(2, LONGEST + 1):
        cost = statistics.median(times[rows]) / alone
        needed = break_even(rows, cost)
        share = "never" if needed is None else f"{needed:.0%}"
        print(f"| {rows} | {cost:.2f} | {share} | {rows / cost:.2f} |")


if __name__ == "__main__":
    main()
