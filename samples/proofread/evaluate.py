"""Correct the texts of a set with a checkpoint, greedily, and score the answers.

    python samples/proofread/evaluate.py build/proofread/teacher build/proofread/heldout.jsonl
    python samples/proofread/evaluate.py build/proofread/teacher samples/proofread/heldout/people.jsonl

Any folder that transformers reads will do, recursive ones included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pairs
import scoring
import torch
from proofread.replies import most_tokens
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import rrt_edge  # noqa: F401  makes recursive checkpoints known to transformers


def correct(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch: int
) -> Iterator[tuple[int, str]]:
    """Each text's index and the model's answer; texts of like length run together."""
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True)
        for text in texts
    ]
    encoded = [tokenizer.encode(prompt, add_special_tokens=False) for prompt in prompts]
    order = sorted(range(len(texts)), key=lambda index: len(encoded[index]))
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(encoded[index]) for index in chosen)
        ids = [[tokenizer.pad_token_id] * (width - len(encoded[index])) + encoded[index] for index in chosen]
        mask = [[0] * (width - len(encoded[index])) + [1] * len(encoded[index]) for index in chosen]
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                max_new_tokens=most_tokens(width),
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
        for index, row in zip(chosen, out[:, width:], strict=True):
            yield index, tokenizer.decode(row, skip_special_tokens=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--first", type=int, help="take the first texts of the set alone")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--answers", type=Path, help="write each text, its right form and the answer here")
    arguments = parser.parse_args()

    chosen = pairs.read_pairs(arguments.texts)[: arguments.first]
    texts, right = [text for text, _ in chosen], [target for _, target in chosen]
    tokenizer = AutoTokenizer.from_pretrained(arguments.checkpoint)
    model = AutoModelForCausalLM.from_pretrained(arguments.checkpoint, dtype=torch.float32).eval()
    started = time.monotonic()
    by_index = dict(correct(model, tokenizer, texts, arguments.batch))
    answers = [by_index[index] for index in range(len(texts))]
    print(json.dumps(scoring.score(texts, right, answers).as_record(), indent=1))
    print(f"{time.monotonic() - started:.0f} s")
    if arguments.answers:
        records = (
            {"text": text, "correct": target, "answer": answer}
            for (text, target), answer in zip(chosen, answers, strict=True)
        )
        arguments.answers.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


if __name__ == "__main__":
    main()
