"""Training for a KV rule: what leaving early costs in quality and in block rows, rule by rule, at equal mean depth.

    python benchmarks/miniature_rules.py [--seeds 0,1,2] [--only CELL ..] [--threads 2]

Begins where paper_miniature.py's early exits do: one body a seed (its cells full and relaxed-16 must have run), trained
for as many tokens again under each rule, then the gate. Each is exported in float32, and its bundle answers the
miniature's 2,000 questions greedily, at gate thresholds that make given mean depths. Block rows are counted by the
runtime: every row of a reply through the block, rows caught up included. Results are kept one by one in
benchmarks/results/miniature_rules.json; paper_miniature.py --table makes the docs of them.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import rrt_edge  # noqa: F401  registers recursive checkpoints
from rrt_edge.exporters import export
from rrt_edge.model.text import encode_chat
from rrt_edge.runtime import Model, Sampling
from rrt_edge.training import TrainOptions, train
from rrt_edge.training.evaluation import score_checkpoint

sys.path.insert(0, str(Path(__file__).resolve().parent))
from paper_miniature import BASE, LR, ROOT, TOKENIZER, WORK, Data, make_data

RESULTS = ROOT / "benchmarks" / "results" / "miniature_rules.json"
MEAN_DEPTHS = (2.0, 1.5, 1.25, 1.1)
RULES = ("latest", "skip", "propagate")
EXITS = replace(BASE, stages=("early-exit", "gate"), lr=LR / 2, gate_lr=1e-2)
CELLS: dict[str, tuple[str, TrainOptions]] = {"exact": ("exact", EXITS)}
for rule in RULES:
    CELLS[f"{rule}-untrained"] = (rule, EXITS)  # the model of `exact` under another rule
    for exits in ("random", "gate"):
        CELLS[f"{rule}-{exits}"] = (rule, replace(EXITS, kv_rule=rule, exits=exits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", nargs="*", choices=list(CELLS), default=list(CELLS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    data = make_data()
    for seed in map(int, arguments.seeds.split(",")):
        for name in arguments.only:
            key = f"{name}/{seed}"
            if key in load_results():
                continue
            started = time.process_time()
            row = run(name, seed, data, arguments.threads)
            row["cpu_seconds"] = round(time.process_time() - started, 1)
            results = {**load_results(), key: row}  # another process may have added some
            partial = RESULTS.with_suffix(".partial")
            partial.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8", newline="\n")
            partial.replace(RESULTS)
            told = ", ".join(
                f"{one['exact']:.1%} at {one['mean_depth']:.2f} ({one['block_rows_per_token']:.2f} rows)"
                for one in row["points"]
            )
            print(f"{key}: {told}", flush=True)


def load_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}


def run(name: str, seed: int, data: Data, threads: int) -> dict[str, Any]:
    rule, options = CELLS[name]
    folder = WORK / f"rule-{'exact' if name.endswith('untrained') else name}-{seed}"
    if not (folder / "config.json").is_file():
        start, teacher = WORK / f"relaxed-16-{seed}" / "trained", WORK / f"full-{seed}" / "plain"
        train(start, folder, data=data.train, teacher=teacher, options=replace(options, seed=seed))
    thresholds = thresholds_for(folder, data)
    checkpoint, bundle = WORK / f"as-{name}-{seed}", WORK / f"bundle-{name}-{seed}"
    shutil.copytree(folder, checkpoint, dirs_exist_ok=True)
    config = json.loads((checkpoint / "config.json").read_text("utf-8"))
    (checkpoint / "config.json").write_text(json.dumps({**config, "kv_rule": rule}), "utf-8")
    export(checkpoint, bundle, bits=32)
    with Model.load(bundle, threads=threads) as model:
        points = [answer(model, data, one) for one in thresholds]
    for copied in (checkpoint, bundle):
        shutil.rmtree(copied)
    return {"points": points}


def thresholds_for(folder: Path, data: Data) -> list[float]:
    """The gate thresholds that make the mean depths: with two loops the gate's values are of loop 1, which no rule
    changes."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    gate = score_checkpoint(model, [encode_chat(tokenizer, chat) for chat in data.questions]).gate[0]
    return [1.0, *(float(np.quantile(gate, depth - 1)) for depth in MEAN_DEPTHS[1:])]


def answer(model: Model, data: Data, threshold: float) -> dict[str, Any]:
    right, depths, rows, tokens = [], 0.0, 0.0, 0
    policy = "full" if threshold == 1 else f"threshold={threshold}"
    for chat in data.questions:
        reply = model.generate(chat[:1], Sampling(max_tokens=64), policy)
        stats = reply.stats
        right.append(int(reply.text == chat[1]["content"]))
        tokens += stats.generated_tokens
        depths += stats.mean_depth * stats.generated_tokens
        rows += stats.block_rows_per_token * stats.generated_tokens
    return {
        "threshold": threshold,
        "exact": sum(right) / len(right),
        "right": f"{int(''.join(map(str, right)), 2):x}",  # bits of a number in hex
        "mean_depth": round(depths / tokens, 4),
        "block_rows_per_token": round(rows / tokens, 4),
    }


if __name__ == "__main__":
    main()
