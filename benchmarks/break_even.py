"""How often drafts must stand for the pipeline to win.

    python benchmarks/break_even.py BUNDLE [--threads 2] [--repeats 15]

Replies of 64 tokens behind 320, in turn: full depth without drafts, and with all drafts made of which a stated share
stands (simulated: only that is drawn, as in `rrt-edge bench --tests decode:full:accept=0.8`). Medians of a token's
time, to full depth without drafts. P is a token where its draft stood, D what one that did not stand costs more, and
the break-even the share from which on drafting all wins.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics

import numpy as np

from rrt_edge.runtime import Model, Sampling
from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.measuring.simulated import SimulatedDrafting

PROMPT, NEW = 320, 64
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)


class Undrafted(Drafting):
    """Full depth token by token."""

    reads_text = False

    def pays(self, last: int, leaves: bool = False) -> bool:
        return False


def break_even(times: dict[float, float], full: float) -> float | None:
    """The share at which a token takes as long as at full depth without drafts; None where it always takes longer."""
    pairs = list(times.items())
    if pairs[0][1] <= full:
        return 0.0
    for (low, before), (high, behind) in itertools.pairwise(pairs):
        if behind <= full:
            return low + (high - low) * (before - full) / (before - behind)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    with Model.load(arguments.bundle, threads=arguments.threads) as model:
        insides(model).manifest = dataclasses.replace(model.manifest, eos_token_ids=())
        held = model.session()
        prompt = np.random.default_rng(0).integers(3, model.manifest.architecture.vocabulary, PROMPT).tolist()
        held.generate(prompt, Sampling(max_tokens=1))
        seconds: dict[float | None, list[float]] = {share: [] for share in (None, *SHARES)}
        for repeat in range(arguments.repeats + 1):
            for share, several in seconds.items():
                insides(model).drafting = Undrafted() if share is None else SimulatedDrafting(share, repeat)
                stats = held.fork().generate(prompt, Sampling(max_tokens=NEW), "full").stats
                if repeat:  # the first is a warm-up
                    several.append(1 / stats.decode_tokens_per_second)
    full = statistics.median(seconds[None])
    times = {share: statistics.median(seconds[share]) for share in SHARES}
    least = break_even(times, full)
    print(f"a token at full depth: {full * 1e3:.1f} ms\n")
    print("| to full depth: P | D | break-even |" + "".join(f" {share:.0%} stand |" for share in SHARES))
    print("|" + "---|" * (3 + len(SHARES)))
    cells = [f"{times[1.0] / full:.2f}", f"{(times[0.0] - times[1.0]) / full:.2f}"]
    cells += ["never" if least is None else f"{least:.0%}", *(f"{full / time:.2f}" for time in times.values())]
    print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
