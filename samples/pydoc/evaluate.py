"""Measure a pydoc model: exact answers to held-out phrasings, perplexity of the answers, speed and depth.

    python samples/pydoc/evaluate.py samples/pydoc/teacher build/pydoc
    python samples/pydoc/evaluate.py bundle build/pydoc --exit-policy threshold --traces traces.jsonl
    python samples/pydoc/evaluate.py bundle build/pydoc --calibrate samples/pydoc/recursive

MODEL is a checkpoint folder (run with transformers) or a bundle (run with rrt_edge.runtime). `--traces` records the
depths of a bundle's answers, for `rrt-edge bench --traces` to replay. `--turns 6` asks six questions in each chat and
tells the exact answers of each turn. `--calibrate` picks the
lowest gate threshold that loses at most 1.5 points of exact answers on calibrate.jsonl, which shares no phrasing with
the held-out questions, and writes it into a checkpoint's config.json, where the next export finds it; beside it the
operating points that `rrt-edge calibrate` wrote into the bundle.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

from rrt_edge.runtime import Manifest, Model, Sampling

THRESHOLDS = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9994, 0.9996, 0.9998, 0.9999, 0.99999)
ALLOWED_LOSS = 0.015  # of the questions, when calibrating
LONGEST = 64  # tokens of an answer
BATCH = 50

Chat = list[dict[str, str]]


def read_chats(path: Path) -> list[Chat]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line)["messages"] for line in file]


def share_exact(answers: list[str], chats: list[Chat]) -> float:
    return sum(answer == chat[1]["content"] for answer, chat in zip(answers, chats, strict=True)) / len(chats)


def evaluate_checkpoint(folder: Path, chats: list[Chat]) -> dict[str, float]:
    """Greedy answers and the perplexity of the right ones, with transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import rrt_edge  # noqa: F401  registers recursive checkpoints
    from rrt_edge.model.text import encode_chat
    from rrt_edge.training.data import PadCollator

    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers: list[str] = []
    losses, tokens = 0.0, 0
    for start in range(0, len(chats), BATCH):
        batch = chats[start : start + BATCH]
        prompts = [tokenizer.apply_chat_template(c[:1], tokenize=False, add_generation_prompt=True) for c in batch]
        inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
        inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            out = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False)
            answers += tokenizer.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            examples = PadCollator(tokenizer.pad_token_id)([encode_chat(tokenizer, chat) for chat in batch])
            labels = examples["labels"][:, 1:]
            logits = model(input_ids=examples["input_ids"], attention_mask=examples["attention_mask"]).logits
            losses += float(torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels, reduction="sum"))
            tokens += int((labels != -100).sum())
    perplexity = float(torch.exp(torch.tensor(losses / tokens)))
    return {"exact": share_exact(answers, chats), "perplexity": perplexity}


def evaluate_bundle(model: Model, chats: list[Chat], exit_policy: str, traces: Path | None = None) -> dict[str, float]:
    """Greedy answers with the runtime, and what they cost; the depths of their tokens go into `traces`."""
    answers, stats, lines = [], [], []
    for chat in chats:
        generation = model.generate(chat[:1], Sampling(max_tokens=LONGEST), exit_policy)
        answers.append(generation.text)
        stats.append(generation.stats)
        lines.append(json.dumps({"tokens": [{"depth": token.depth} for token in generation.tokens]}))
    if traces is not None:
        traces.write_text("\n".join(lines) + "\n", "utf-8", newline="\n")
    tokens = sum(one.generated_tokens for one in stats)
    return {
        "exact": share_exact(answers, chats),
        "mean_depth": sum(one.mean_depth * one.generated_tokens for one in stats) / tokens,
        "block_rows_per_token": sum(one.block_rows_per_token * one.generated_tokens for one in stats) / tokens,
        "decode_tokens_per_second": statistics.median(one.decode_tokens_per_second for one in stats),
    }


def evaluate_turns(model: Model, chats: list[Chat], exit_policy: str, turns: int) -> dict[str, float]:
    """Exact answers by turn, where a chat goes on with the model's own replies."""
    exact = [0] * turns
    groups = [chats[start : start + turns] for start in range(0, len(chats) - turns + 1, turns)]
    for group in groups:
        messages: Chat = []
        for number, chat in enumerate(group):
            messages += chat[:1]
            reply = model.generate(messages, Sampling(max_tokens=LONGEST), exit_policy)
            exact[number] += reply.text == chat[1]["content"]
            messages += [{"role": "assistant", "content": reply.text}]
    return {f"turn {number}": count / len(groups) for number, count in enumerate(exact, 1)}


def calibrate(model: Model, chats: list[Chat], checkpoint: Path, points: dict[str, float]) -> None:
    """Choose the threshold on `chats` and write it into the checkpoint's config, with the operating points."""
    full = evaluate_bundle(model, chats, "full")
    show("full", full)
    chosen = 1.0
    for threshold in reversed(THRESHOLDS):
        found = evaluate_bundle(model, chats, f"threshold={threshold}")
        show(f"threshold={threshold}", found)
        if found["exact"] < full["exact"] - ALLOWED_LOSS:
            break
        chosen = threshold
    path = checkpoint / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config |= {"exit_threshold": chosen, "exit_points": points}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8", newline="\n")
    print(f"{path}: exit_threshold {chosen}")


def show(name: str, figures: dict[str, float]) -> None:
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="the folder recipe.py wrote")
    parser.add_argument("--exit-policy", default="full", help="for a bundle")
    parser.add_argument("--traces", type=Path, metavar="FILE")
    parser.add_argument("--turns", type=int, default=1, help="questions that are asked in a chat, of a bundle")
    parser.add_argument("--calibrate", type=Path, metavar="CHECKPOINT")
    arguments = parser.parse_args()
    chats = read_chats(arguments.data / ("calibrate.jsonl" if arguments.calibrate else "heldout.jsonl"))
    if not (arguments.model / "manifest.json").is_file():
        if arguments.calibrate:
            sys.exit("--calibrate needs a bundle")
        show(str(arguments.model), evaluate_checkpoint(arguments.model, chats))
        return
    with Model.load(arguments.model) as model:
        if arguments.calibrate:
            calibrate(model, chats, arguments.calibrate, Manifest.read(arguments.model).gate.points)
        elif arguments.turns > 1:
            show(str(arguments.model), evaluate_turns(model, chats, arguments.exit_policy, arguments.turns))
        else:
            figures = evaluate_bundle(model, chats, arguments.exit_policy, arguments.traces)
            show(f"{arguments.model} {arguments.exit_policy}", figures)


if __name__ == "__main__":
    main()
