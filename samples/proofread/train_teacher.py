"""Fine-tune SmolLM2 to correct texts; what it reads is a chat, the loss is on the reply alone.

    python samples/proofread/train_teacher.py build/proofread/smollm2 build/proofread/train.jsonl \\
        build/proofread/teacher --log samples/proofread/log/teacher.jsonl

Started again with the same options it goes on from its last checkpoint (OUT.state) to the same weights: the order of
the texts follows from the seed, and nothing is drawn while training. SIGTERM and --minutes save before they stop.
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pairs
import torch
from threaded_training import Progress, Trainer, batches_of, encode
from transformers import AutoTokenizer

SAVE_EVERY = 300  # seconds
LOG_EVERY = 10  # steps


def rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Warm-up, then a cosine down to a tenth."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))))


def write_log(path: Path | None, progress: Progress) -> None:
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(line) + "\n" for line in progress.log), "utf-8")


def stopping() -> Iterator[bool]:
    """False until SIGTERM or SIGINT asks to stop."""
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.append(True))
    while True:
        yield bool(asked)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="of prompts and replies")
    parser.add_argument("--batch", type=int, default=16, help="texts a step")
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--warmup", type=int, default=40, help="steps")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--bf16", action="store_true", help="products in bfloat16, for processors with AVX512-BF16 or AMX"
    )
    parser.add_argument("--minutes", type=float, default=150, help="stop after so long; start again to go on")
    parser.add_argument("--finish", action="store_true", help="write OUT from the last checkpoint, without training on")
    parser.add_argument("--steps", type=int, help="stop after so many, for a trial")
    parser.add_argument("--development", type=Path, help="print the loss on this set at the end")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    tokenizer = AutoTokenizer.from_pretrained(arguments.base)
    examples = [encode(tokenizer, *pair) for pair in pairs.read_pairs(arguments.data)]
    batches = batches_of(examples, arguments.batch, arguments.tokens, arguments.seed)
    trainer, state = (
        Trainer(arguments.base, arguments.threads, arguments.bf16),
        arguments.out.with_name(arguments.out.name + ".state"),
    )
    progress = trainer.load(state) if state.exists() else Progress()
    print(f"{len(examples)} texts, {len(batches)} steps, at step {progress.step}", flush=True)

    begun = saved = time.monotonic()
    stop, losses = stopping(), list[float]()
    end = progress.step if arguments.finish else min(len(batches), arguments.steps or len(batches))
    while progress.step < end and not next(stop) and time.monotonic() - begun < 60 * arguments.minutes:
        started, batch = time.monotonic(), batches[progress.step]
        lr = rate(progress.step, len(batches), arguments.lr, arguments.warmup)
        losses.append(trainer.step(batch, lr))
        progress.step, progress.tokens = progress.step + 1, progress.tokens + sum(map(len, batch))
        progress.seconds = round(progress.seconds + time.monotonic() - started, 1)
        if progress.step % LOG_EVERY == 0:
            line = {"step": progress.step, "tokens": progress.tokens, "loss": round(sum(losses) / len(losses), 4)}
            progress.log.append({**line, "lr": round(lr, 7), "seconds": progress.seconds})
            print(progress.log[-1], f"{sum(map(len, batch)) / (time.monotonic() - started):.0f} tokens/s", flush=True)
            losses.clear()
        if time.monotonic() - saved > SAVE_EVERY:
            trainer.save(state, progress)
            write_log(arguments.log, progress)
            saved = time.monotonic()
    if arguments.development:
        held = [encode(tokenizer, *pair) for pair in pairs.read_pairs(arguments.development)]
        print(f"loss on {arguments.development}: {trainer.loss(held):.4f}")
    if arguments.steps:
        return
    if not arguments.finish:
        trainer.save(state, progress)
        write_log(arguments.log, progress)
    if arguments.finish or progress.step == len(batches):
        trainer.models[0].save_pretrained(arguments.out)
        tokenizer.save_pretrained(arguments.out)
        print(f"saved {arguments.out}")


if __name__ == "__main__":
    main()
