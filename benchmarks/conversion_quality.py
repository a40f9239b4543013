"""Perplexity of recursive models as converted, before any training, beside their source's.

    python benchmarks/conversion_quality.py SOURCE plain-english.txt.gz [--loops 2] [--ranks 32,64,128]
        [--methods svd,svd-own,output] [--tokens 16384] [--folder build/conversion-quality]

The text has a sentence a line. Lines 1 to 1,600, 40 a text, are what `--data` gets; perplexity is of lines 2,001 to
2,800, 40 a text. Texts are cut to 512 tokens. Methods: `svd` is the paper's conversion, `svd-own` the same with norms
of each depth's own, `output` what `--data` makes; `output:stepwise` from another block (--init). `spread`, behind
another method, is `output` with as many parameters as that one had, but with ranks that `--parameters` chose.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import rrt_edge

TEXT_LINES, TEXT_TOKENS = 40, 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--loops", type=int, default=2)
    parser.add_argument("--ranks", default="32,64,128")
    parser.add_argument("--methods", default="svd,svd-own,output")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--folder", type=Path, default=Path("build/conversion-quality"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(arguments.text, "rt", encoding="utf-8") as file:
        lines = [line.strip() for _, line in zip(range(2800), file, strict=False)]
    data = arguments.folder / "texts.jsonl"
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(lines[:1600])), "utf-8")
    tokenizer = AutoTokenizer.from_pretrained(arguments.source)
    held_out = [tokenizer(text)["input_ids"][:TEXT_TOKENS] for text in texts_of(lines[2000:2800])]
    source = perplexity(load(arguments.source), held_out)
    print(f"{sum(map(len, held_out)):,} tokens; source {source:.2f}", flush=True)
    print("| method | rank | parameters | perplexity | to the source's | seconds | peak MB |")
    print("|---|---|---|---|---|---|---|", flush=True)
    share = 1.0
    for rank in map(int, arguments.ranks.split(",")):
        for method in arguments.methods.split(","):
            kind, _, init = method.partition(":")
            options = {"data": data, "data_tokens": arguments.tokens} if kind in ("output", "spread") else {}
            options |= {"parameters": share} if kind == "spread" else {"rank": rank}
            out, started = arguments.folder / "recursive", time.perf_counter()
            report = rrt_edge.convert(
                arguments.source, out, loops=arguments.loops, init=init or "average",
                own_vectors=kind != "svd", **options,
            )  # fmt: skip
            count = report.parameters
            share = count.total / (count.total - count.non_embedding + count.source_non_embedding)
            seconds, found = time.perf_counter() - started, perplexity(load(out), held_out)
            shown = ", ".join(f"{name} {own}" for name, own in report.component_ranks.items()) or rank
            cells = [method, shown, f"{count.total / 1e6:.1f}M", f"{found:,.2f}", f"{found / source:,.2f}"]
            cells += [f"{seconds:.0f}", f"{report.peak_memory_bytes / 1e6:.0f}"]
            print(f"| {' | '.join(map(str, cells))} |", flush=True)


def texts_of(lines: Sequence[str]) -> list[str]:
    return [" ".join(lines[start : start + TEXT_LINES]) for start in range(0, len(lines), TEXT_LINES)]


def load(folder: Path, **options: str) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options).eval()
    return model


@torch.no_grad()
def perplexity(model: PreTrainedModel, texts: Sequence[Sequence[int]]) -> float:
    loss, count = 0.0, 0
    for ids in texts:
        tokens = torch.tensor([list(ids)])
        logits = model(tokens).logits[0, :-1].log_softmax(-1)
        loss -= float(logits.gather(1, tokens[0, 1:, None]).sum())
        count += len(ids) - 1
    return math.exp(loss / count)


if __name__ == "__main__":
    main()
