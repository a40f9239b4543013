"""Lossless mode on the demo: the same tokens as full depth over 10,000 of them, acceptance, and speed.

    python benchmarks/lossless.py [BUNDLE] [DATA]      build/demo/bundle and build/pydoc, made by samples/demo.sh

Greedy answers to the held-out questions and, after those, to random prompts, `full` and `lossless` in turn. A token may
differ only at a tie: where full depth's two best logits are nearer than running a row alone and running it among others
differ (measured first, on the same texts). Ties are counted and the comparison goes on behind them.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import numpy as np

from rrt_edge.runtime import ExitPolicy, Generation, Model, Sampling
from rrt_edge.runtime.decoding.decoder import Decoder

TOKENS = 10_000
LONGEST = 64
MOST_TIES = 1e-3  # of the tokens


def row_error(model: Model, texts: list[list[int]]) -> float:
    """The largest difference of a full-depth logit between rows run one by one and all at once."""
    worst = 0.0
    for ids in texts:
        alone, together = Decoder(model.runner), Decoder(model.runner)
        single = np.stack([alone.step(token, ExitPolicy()).logits for token in ids])
        for token in ids[:-1]:
            together.step(token, ExitPolicy(depth=1))
        worst = max(worst, float(np.abs(together.verify(len(ids), ids[-1]) - single).max()))
    return worst


def gap_at(model: Model, ids: list[int]) -> float:
    """The distance of full depth's two best logits behind a text."""
    decoder = Decoder(model.runner)
    decoder.prefill(ids[:-1], ExitPolicy())
    best = np.partition(decoder.step(ids[-1], ExitPolicy()).logits, -2)[-2:]
    return float(best[1] - best[0])


def compare(model: Model, prompt: list[int], allowed: float) -> tuple[int, int, list[Generation]]:
    """Tokens compared, ties among them, and the generations."""
    compared = ties = 0
    made = []
    ids = list(prompt)
    while compared < LONGEST:
        sampling = Sampling(max_tokens=LONGEST - compared)
        full, lossless = (model.generate(ids, sampling, policy) for policy in ("full", "lossless"))
        made += [full, lossless]
        ours, theirs = ([token.id for token in one.tokens] for one in (lossless, full))
        same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if same is None:
            return compared + len(theirs), ties, made
        gap = gap_at(model, ids + theirs[:same])
        if gap > allowed:
            raise SystemExit(f"lossless differs from full depth where the best two are {gap:.2e} apart: {ids}")
        ties += 1
        compared += same + 1
        ids += theirs[: same + 1]
        if full.finish_reason == "stop" and same + 1 == len(theirs):
            break
    return compared, ties, made


def seconds(generation: Generation) -> float:
    """From the request to the last token."""
    stats = generation.stats
    return stats.time_to_first_token_s + (stats.generated_tokens - 1) / max(stats.decode_tokens_per_second, 1e-9)


def main() -> None:
    bundle, data = (
        Path(sys.argv[i]) if len(sys.argv) > i else Path(d) for i, d in ((1, "build/demo/bundle"), (2, "build/pydoc"))
    )
    with Model.load(bundle) as model:
        lines = (data / "heldout.jsonl").read_text("utf-8").splitlines()
        prompts = [model.encode_chat(json.loads(line)["messages"][:1]) for line in lines]
        float32 = model.manifest.quantization.bits == 32
        allowed = 1e-4 if float32 else row_error(model, prompts[:20])
        print(f"logits nearer than {allowed:.2e} count as a tie")
        rng = np.random.default_rng(0)
        compared = ties = 0
        runs: dict[str, list[tuple[float, int, int]]] = {"questions": [], "random prompts": []}
        ratios: dict[str, list[float]] = {name: [] for name in runs}
        while compared < TOKENS:
            name = "questions" if prompts else "random prompts"
            prompt = prompts.pop() if prompts else rng.integers(4, model.manifest.architecture.vocabulary, 12).tolist()
            count, tied, made = compare(model, prompt, allowed)
            compared, ties = compared + count, ties + tied
            for full, lossless in zip(made[::2], made[1::2], strict=True):
                stats = lossless.stats
                ratios[name].append(seconds(full) / seconds(lossless))
                runs[name].append((stats.block_rows_per_token, stats.drafted, stats.accepted))
        print(f"{compared} tokens compared, {ties} ties")
        for name, found in runs.items():
            if found:
                drafted, accepted = sum(one[1] for one in found), sum(one[2] for one in found)
                print(
                    f"{name}: {accepted} of {drafted} drafts stood ({accepted / max(1, drafted):.1%}), "
                    f"{statistics.mean(one[0] for one in found):.2f} block rows a token, "
                    f"{statistics.median(ratios[name]):.2f} of full depth's speed, prompt included"
                )
        if ties > MOST_TIES * compared:
            raise SystemExit("more ties than 1 in 1,000")


if __name__ == "__main__":
    main()
