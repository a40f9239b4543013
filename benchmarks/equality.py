"""How equal full depth is with drafts and without, and in a batch and alone: tokens that differ, and by what margin.

    python benchmarks/equality.py [--data build/pydoc] [--bits 4 8 32] [--tokens 20000] [--drafts all]

The demo (samples/pydoc/recursive) is exported at each number of bits. It answers the held-out questions (build/pydoc,
made by samples/pydoc/recipe.py), goes on from paragraphs of this repository's documentation, which it does not know,
and from random tokens: `full` without drafts and with them in turn, greedily. Where they differ, the margin by which
the undrafted token leads over the other is printed, and the comparison goes on behind that token. Then the same prompts
run as a batch, whose replies are compared with those that each got alone. `--drafts all` makes each draft that can be
made, `paying` those that the runtime makes by itself, which is what the speed should be read by.

All of it once as a bundle is loaded by default, and once with `reproducible=True`, which drafts nothing and must show
no difference at all. By default it is an error if more than 1 token in 1,000 differs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rrt_edge.exporters import export
from rrt_edge.runtime import Engine, ExitPolicy, Generation, Model, Sampling
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.drafting import Drafting
from rrt_edge.runtime.loaded import insides

ROOT = Path(__file__).resolve().parent.parent
LONGEST = 64  # tokens of a reply
BATCH = 38  # replies of each kind that are compared with a batch's
MOST_DIFFERENT = 1e-3  # of the tokens


@dataclass
class Kind:
    """What one kind of prompt showed."""

    tokens: int = 0
    margins: list[float] = field(default_factory=list)  # of the undrafted token over the other, where they differ
    ratios: list[float] = field(default_factory=list)  # of the times, without drafts to with them
    steps: float = 0.0  # with drafts
    piped: int = 0  # tokens that took them
    drafted: int = 0
    accepted: int = 0


class Undrafted(Drafting):
    """Full depth token by token."""

    reads_text = False

    def pays(self, last: int, leaves: bool = False) -> bool:
        return False


class AllDrafts(Drafting):
    """Each draft that can be made is."""

    def pays(self, last: int, leaves: bool = False) -> bool:
        return True

    def cutoff(self, rows: int, sequences: int = 1) -> float:
        return 0.0


def prompts_of(model: Model, data: Path) -> dict[str, Iterator[list[int]]]:
    """Prompts by kind, without end."""
    rng = np.random.default_rng(0)
    lines = (data / "heldout.jsonl").read_text("utf-8").splitlines()
    questions = [model.encode_chat(json.loads(line)["messages"][:1]) for line in lines]
    pages = [path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))]
    paragraphs = [part for page in pages for part in page.split("\n\n") if len(part) > 120 and "|" not in part]
    prose = [model.encode(text)[:40] for text in rng.permutation(paragraphs)]
    vocabulary = model.manifest.architecture.vocabulary
    return {
        "questions": (questions[at % len(questions)] for at in range(1 << 20)),
        "unknown prose": (prose[at % len(prose)][: 40 - at // len(prose)] for at in range(1 << 20)),
        "random tokens": (rng.integers(4, vocabulary, 12).tolist() for _ in range(1 << 20)),
    }


def row_error(model: Model, texts: list[list[int]]) -> float:
    """The largest difference of a full-depth logit between rows run one by one and all at once."""
    worst = 0.0
    for ids in texts:
        alone, together = Decoder(insides(model).runner), Decoder(insides(model).runner)
        single = np.stack([alone.step(token, ExitPolicy()).logits for token in ids])
        whole = np.concatenate(list(together.forced(ids, ExitPolicy())))
        worst = max(worst, float(np.abs(whole - single).max()))
    return worst


def margin(model: Model, ids: list[int], token: int, other: int) -> float:
    """By how much one token's logit leads over another's behind a text, at full depth."""
    decoder = Decoder(insides(model).runner)
    decoder.prefill(ids[:-1], ExitPolicy())
    logits = decoder.step(ids[-1], ExitPolicy()).logits
    return float(logits[token] - logits[other])


def compare(model: Model, prompt: list[int], kind: Kind, drafting: Drafting) -> None:
    """Full depth without and with drafts behind one prompt."""
    compared, ids = 0, list(prompt)
    while compared < LONGEST:
        sampling = Sampling(max_tokens=LONGEST - compared)
        generations = []
        for insides(model).drafting in (Undrafted(), drafting):
            generations.append(model.generate(ids, sampling, "full"))
        full, piped = generations
        kind.ratios.append(seconds(full) / seconds(piped))
        kind.drafted += piped.stats.drafted
        kind.accepted += piped.stats.accepted
        kind.steps += piped.stats.steps_per_token * len(piped.tokens)
        kind.piped += len(piped.tokens)
        ours, theirs = ([token.id for token in generation.tokens] for generation in (piped, full))
        same = next((at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if same is None:
            compared += len(theirs)
            break
        kind.margins.append(margin(model, ids + theirs[:same], theirs[same], ours[same]))
        compared += same + 1
        ids += theirs[: same + 1]
        if full.finish_reason == "stop" and same + 1 == len(theirs):
            break
    kind.tokens += compared


def seconds(generation: Generation) -> float:
    """From the request to the last token."""
    stats = generation.stats
    return stats.time_to_first_token_s + (stats.generated_tokens - 1) / max(stats.decode_tokens_per_second, 1e-9)


def batch(model: Model, prompts: list[list[int]]) -> int:
    """Replies that differ between a batch and single runs."""
    sampling = Sampling(max_tokens=LONGEST)
    engine = Engine(model)
    requests = [engine.submit(prompt, sampling, "full") for prompt in prompts]
    for _ in engine.run():
        pass
    alone = [model.generate(prompt, sampling, "full").tokens for prompt in prompts]
    pairs = zip(requests, alone, strict=True)
    return sum([token.id for token in request.tokens] != [token.id for token in ours] for request, ours in pairs)


def measure(bundle: Path, data: Path, tokens: int, reproducible: bool, drafts: str) -> bool:
    """Print a bundle's table; whether it is within bounds."""
    with Model.load(bundle, reproducible=reproducible) as model:
        prompts = prompts_of(model, data)
        rounding = row_error(model, [next(texts)[:30] for texts in prompts.values() for _ in range(8)])
        print(f"  a row's logits, alone and among others: up to {rounding:.1e} apart")
        within, different, compared = True, 0, 0
        for name, texts in prompts.items():
            kind, share = Kind(), -(-tokens // len(prompts))
            drafting = AllDrafts() if drafts == "all" else Drafting()
            while kind.tokens < share:
                compare(model, next(texts), kind, drafting)
            apart = batch(model, [next(texts) for _ in range(BATCH)])
            margins = sorted(kind.margins)
            within &= not (reproducible and (margins or apart))
            different, compared = different + len(margins), compared + kind.tokens
            print(
                f"  {name}: {len(margins)} of {kind.tokens} tokens differ ({1000 * len(margins) / kind.tokens:.2f} in "
                f"1,000), {apart} of {BATCH} replies in a batch; drafts that stood "
                f"{kind.accepted / max(1, kind.drafted):.0%}, {kind.steps / kind.piped:.2f} steps a token, "
                f"{statistics.median(kind.ratios):.2f} of the speed without"
            )
            if margins:
                print("    margins: " + " ".join(f"{value:.1e}" for value in margins))
        return within and different <= MOST_DIFFERENT * compared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("build/pydoc"))
    parser.add_argument("--bits", type=int, nargs="+", default=[4, 8, 32])
    parser.add_argument("--tokens", type=int, default=20_000, help="at each number of bits, in each way of loading")
    parser.add_argument("--drafts", choices=["all", "paying"], default="all")
    arguments = parser.parse_args()
    within = True
    for bits in arguments.bits:
        with tempfile.TemporaryDirectory() as folder:
            export(ROOT / "samples" / "pydoc" / "recursive", Path(folder) / "bundle", bits=bits)
            for reproducible in (False, True):
                print(f"{bits} bits, {'reproducible' if reproducible else 'by default'}", flush=True)
                within &= measure(
                    Path(folder) / "bundle", arguments.data, arguments.tokens, reproducible, arguments.drafts
                )
    if not within:
        raise SystemExit("more differences than allowed")


if __name__ == "__main__":
    main()
