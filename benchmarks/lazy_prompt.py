"""Prompts run through all loops at once, or through the deeper ones when a token needs them: waits and totals.

    python benchmarks/lazy_prompt.py BUNDLE [--policy threshold | trace=0.6] [--prompt 256] [--new 64] [--repeats 5]
    python benchmarks/lazy_prompt.py build/demo/bundle --data build/pydoc          the demo's held-out questions

Random prompts, or the questions of DATA. Eager and lazy in turn; medians over the replies. A trace draws the tokens
that leave after loop 1, so that a random model leaves as often as a trained one.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import numpy as np

from rrt_edge.runtime import ExitPolicy, Model, Sampling
from rrt_edge.runtime.decoding.reply import Stats
from rrt_edge.runtime.measuring.exit_traces import trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--policy", default="threshold")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    with Model.load(arguments.bundle) as model:
        rng = np.random.default_rng(0)
        if arguments.data:
            lines = (arguments.data / "heldout.jsonl").read_text("utf-8").splitlines()[:100]
            prompts = [model.encode_chat(json.loads(line)["messages"][:1]) for line in lines]
        else:
            vocabulary = model.manifest.architecture.vocabulary
            prompts = [rng.integers(3, vocabulary, arguments.prompt).tolist() for _ in range(arguments.repeats)]
        model.generate(prompts[0], Sampling(max_tokens=4))
        found: dict[bool, list[Stats]] = {False: [], True: []}
        for prompt in prompts:
            policy = arguments.policy
            if policy.startswith("trace="):
                early = trace(float(policy[6:]), arguments.new, 1, rng)
                policy = ExitPolicy(trace=tuple(1 if leaves else model.loops for leaves in early))
            for lazy in found:
                session = model.session(lazy_prompt=lazy)
                list(session.stream(prompt, Sampling(max_tokens=arguments.new), policy))
                found[lazy].append(session.stats)
    print("| prompt | first token | longest gap | whole reply | mean depth |")
    print("|---|---|---|---|---|")
    for lazy, stats in found.items():
        totals = [
            one.time_to_first_token_s + (one.generated_tokens - 1) / max(one.decode_tokens_per_second, 1e-9)
            for one in stats
        ]
        first = statistics.median(one.time_to_first_token_s for one in stats)
        gap = statistics.median(one.longest_gap_s for one in stats)
        depth = statistics.fmean(one.mean_depth for one in stats)
        cells = f"{first * 1e3:.1f} ms | {gap * 1e3:.1f} ms | {statistics.median(totals) * 1e3:.1f} ms | {depth:.2f}"
        print(f"| {'lazy' if lazy else 'eager'} | {cells} |")


if __name__ == "__main__":
    main()
