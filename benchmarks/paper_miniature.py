"""The paper's tables in miniature: what sharing costs, what relaxing and distilling bring back, what early exits lose.

    python benchmarks/paper_miniature.py [--only CELL ..] [--seeds 0,1,2] [--threads 2]
    python benchmarks/paper_miniature.py --table            writes docs/miniature.md and its plots from the results

Models of 1 to 1.6 million parameters learn what 400 names of Python's standard library do, asked in many phrasings,
beside plain text of its docstrings. Every cell trains on the same tokens. Exact answers are to 2,000 questions in
phrasings that no training saw; perplexity is of docstrings of other modules. Results are kept one by one in
benchmarks/results/paper_miniature.json: run again, it goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import rrt_edge
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.conversion.conversion import count_parameters
from rrt_edge.model.text import encode_chat, encode_text
from rrt_edge.training import TrainOptions, train
from rrt_edge.training.evaluation import score_checkpoint

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "samples" / "pydoc"))
import recipe  # noqa: E402

WORK, RESULTS = ROOT / "build" / "miniature", ROOT / "benchmarks" / "results" / "paper_miniature.json"
FEW = WORK / "few.jsonl"  # of the cells' training data, for a conversion that knows texts
TOKENIZER = ROOT / "samples" / "pydoc" / "teacher"
NAMES, QUESTIONS_EACH = 400, 5
SOURCE_ROUNDS, ROUNDS = 60, 12  # times each name is asked: in the source's training, and in every cell's
TEXTS, HELD_OUT_TEXTS, TEXT_ROUNDS = 1000, 200, 3  # docstrings: half of them for the source, half for the cells
SHAPE = {
    "vocab_size": 4096, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 12, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 32, "max_position_embeddings": 512, "tie_word_embeddings": True,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
}  # fmt: skip
LR = 2e-3
BASE = TrainOptions(stages=("uptrain",), lr=LR, batch=8, warmup=50, max_length=160, save_steps=10**9)


@dataclass(frozen=True)
class Cell:
    """A model and how it is trained. `start`: the source, its shape from scratch, or another cell's result."""

    name: str
    what: str
    start: str = "source"
    convert: tuple[tuple[str, Any], ...] = ()
    teacher: bool = True
    options: TrainOptions | None = BASE

    def conversion(self) -> dict[str, Any]:
        return dict(self.convert)


def cell(name: str, what: str, start: str = "source", teacher: bool = True, **convert: Any) -> Cell:
    return Cell(name, what, start, tuple(convert.items()), teacher)


def exits(name: str, what: str, **options: Any) -> Cell:
    trained = replace(BASE, stages=("early-exit",), lr=LR / 2, **options)
    return Cell(name, what, "relaxed-16", (), True, trained)


CELLS = [
    cell("full", "full model, trained on; the others' teacher", teacher=False, loops=1),
    cell("scratch", "same size from scratch, no teacher", "scratch", teacher=False, loops=1),
    cell("scratch-kd", "same size from scratch", "scratch", loops=1),
    cell("stepwise", "recursive, stepwise", init="stepwise"),
    cell("average", "recursive, average", init="average"),
    cell("lower", "recursive, lower", init="lower"),
    cell("random", "recursive, random", init="random"),
    cell("relaxed-4", "relaxed, average + SVD, rank 4", rank=4),
    cell("relaxed-8", "relaxed, average + SVD, rank 8", rank=8),
    cell("relaxed-16", "relaxed, average + SVD, rank 16", rank=16),
    cell("zero-16", "relaxed, average + zero, rank 16", rank=16, lora_init="zero"),
    cell("output-16", "relaxed, average + output on 80 texts, own norms, rank 16", rank=16, data=FEW),
    cell("stepwise-16", "relaxed, stepwise + SVD, rank 16", rank=16, init="stepwise"),
    cell("no-teacher", "relaxed, average + SVD, rank 16, no teacher", teacher=False, rank=16),
    cell("three-loops", "relaxed, average + SVD, rank 16, 3 loops", rank=16, loops=3),
    exits("exit-none", "no exit loss: trained on as before", exit_weight=0.0),
    exits("exit-weighted", "weighted cross entropy", exit_loss="weighted"),
    exits("exit-aggressive", "aggressive 0.1", exit_weight=0.1, exit_kd_weight=0.0),
    exits("exit-aggressive-kd", "aggressive 0.1 + KD", exit_weight=0.1),
    exits("exit-equal", "ours: equal weights + KD", exit_weight=1.0),
    exits("exit-triple", "ours: first loop three times + KD", exit_weight=3.0),
    exits("exit-taught", "ours: equal weights + KD from the teacher", exit_weight=1.0, exit_teacher=True),
    exits("exit-stochastic", "ours: drawn depth + KD from the teacher", exit_loss="stochastic"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=[one.name for one in CELLS])
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        from miniature_table import write_table

        rules = json.loads((RESULTS.parent / "miniature_rules.json").read_text("utf-8"))
        write_table(json.loads(RESULTS.read_text("utf-8")), {one.name: one.what for one in CELLS}, rules)
        return
    torch.set_num_threads(arguments.threads)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    wanted = [(seed, one) for seed in seeds for one in CELLS if not arguments.only or one.name in arguments.only]
    results = load_results()
    missing = [(seed, one) for seed, one in wanted if key(one, seed) not in results]
    known = [row["cpu_seconds"] for row in results.values()]
    each = sum(known) / len(known) if known else 150
    print(f"{len(missing)} of {len(wanted)} runs to do, about {len(missing) * each / 3600:.1f} CPU-hours", flush=True)
    data = make_data()
    make_source(data)
    for seed, one in missing:
        if key(one, seed) in load_results():  # by another process meanwhile
            continue
        row = run(one, seed, data)
        results = load_results()  # another process may have added some
        results[key(one, seed)] = row
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", "utf-8", newline="\n")
        partial.replace(RESULTS)
        exact = ", ".join(f"{share:.1%}" for share in row["exact"])
        print(f"{one.name}, seed {seed}: exact {exact}; text {row['text_perplexity'][-1]:.2f}", flush=True)


def key(one: Cell, seed: int) -> str:
    return f"{one.name}/{seed}"


def load_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}


@dataclass(frozen=True)
class Data:
    source: Path  # training data of the source
    train: Path  # of every cell
    questions: list[list[dict[str, str]]]
    texts: list[str]


def make_data() -> Data:
    answers = recipe.load_answers()
    rng = random.Random(7)
    names = rng.sample(sorted(answers), NAMES)
    chosen = {name: answers[name] for name in names}
    templates = recipe.phrasings()
    texts = list(docstrings())
    rng.shuffle(texts)
    assert len(texts) >= TEXTS + HELD_OUT_TEXTS
    WORK.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, rounds, part in (("source", SOURCE_ROUNDS, 0), ("train", ROUNDS, 1)):
        chats = [
            json.dumps({"messages": recipe.turn(rng.choice(templates.train).format(asked), answer)})
            for _ in range(rounds)
            for asked, answer in chosen.items()
        ]
        half = TEXTS // 2
        lines = chats + [json.dumps({"text": text}) for text in texts[part * half : (part + 1) * half]] * TEXT_ROUNDS
        rng.shuffle(lines)
        path = WORK / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", "utf-8")
        paths.append(path)
    FEW.write_text("".join(paths[1].read_text("utf-8").splitlines(keepends=True)[:80]), "utf-8")
    asked = random.Random(8)
    questions = [
        recipe.turn(asked.choice(templates.held_out).format(name), answer)
        for _ in range(QUESTIONS_EACH)
        for name, answer in chosen.items()
    ]
    return Data(paths[0], paths[1], questions, texts[TEXTS : TEXTS + HELD_OUT_TEXTS])


def docstrings() -> Iterator[str]:
    """Plain text: docstrings of some length, one for each text there is."""
    seen: set[str] = set()
    for _, thing in recipe.public_things():
        doc = getattr(thing, "__doc__", None)
        text = " ".join(doc.split())[:400] if isinstance(doc, str) else ""
        if len(text) > 200 and text.isascii() and text not in seen:
            seen.add(text)
            yield text


def make_source(data: Data) -> Path:
    """The pretrained model that cells start from."""
    folder = WORK / "source"
    if not (folder / "config.json").is_file():
        fresh = scratch(WORK / "fresh", SHAPE["num_hidden_layers"], seed=0)
        rrt_edge.convert(fresh, WORK / "source-converted", loops=1)
        train(WORK / "source-converted", WORK / "source-trained", data=data.source, options=BASE)
        as_plain(WORK / "source-trained", folder)
    return folder


def scratch(folder: Path, layers: int, seed: int) -> Path:
    """A random model of so many layers."""
    torch.manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": layers})).save_pretrained(folder)
    Checkpoint(TOKENIZER).copy_companions(folder)
    return folder


def as_plain(trained: Path, folder: Path) -> None:
    """An unshared recursive checkpoint (one loop) as the plain one it is."""
    model = AutoModelForCausalLM.from_pretrained(trained)
    plain = LlamaForCausalLM(model.config.text_config)
    state = {name.replace("model.block.", "model.layers."): tensor for name, tensor in model.state_dict().items()}
    plain.load_state_dict({name: tensor for name, tensor in state.items() if "exit_gate" not in name})
    plain.save_pretrained(folder)
    Checkpoint(TOKENIZER).copy_companions(folder)


def run(one: Cell, seed: int, data: Data) -> dict[str, Any]:
    started = time.process_time()
    folder = WORK / f"{one.name}-{seed}"
    teacher = WORK / f"full-{seed}" / "plain"
    if one.start in ("source", "scratch"):
        layers = SHAPE["num_hidden_layers"] // 2
        begin = WORK / "source" if one.start == "source" else scratch(folder / "fresh", layers, seed=100 + seed)
        rrt_edge.convert(begin, folder / "converted", **one.conversion())
        begin = folder / "converted"
    else:
        begin = WORK / f"{one.start}-{seed}" / "trained"
    options = replace(one.options or BASE, seed=seed)
    report = train(
        begin, folder / "trained", data=data.train, teacher=teacher if one.teacher else None, options=options
    )
    if one.name == "full":
        as_plain(folder / "trained", teacher)
    model = AutoModelForCausalLM.from_pretrained(folder / "trained", dtype=torch.float32).eval()
    row = {"parameters": count_parameters(model).non_embedding, "loss": report.final_loss, **measure(model, data)}
    shutil.rmtree(folder / "converted", ignore_errors=True)
    row["cpu_seconds"] = round(time.process_time() - started, 1)
    return row


def measure(model: rrt_edge.RecursiveForCausalLM, data: Data) -> dict[str, Any]:
    """By depth: exact answers (greedy decoding says the answer where each of its tokens is the likeliest behind those
    before it), and which were, for paired comparisons; perplexity of answers and of the held-out text."""
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    answers = score_checkpoint(model, [encode_chat(tokenizer, chat) for chat in data.questions])
    texts = score_checkpoint(model, [encode_text(tokenizer, text) for text in data.texts])
    depths = range(1, answers.depths + 1)
    right = [answers.exact(depth) for depth in depths]
    return {
        "exact": [float(one.mean()) for one in right],
        "right": [f"{int(''.join(map(str, one.astype(int))), 2):x}" for one in right],  # bits of a number in hex
        "perplexity": [round(answers.at_depth(depth).perplexity, 4) for depth in depths],
        "text_perplexity": [round(texts.at_depth(depth).perplexity, 4) for depth in depths],
    }


if __name__ == "__main__":
    main()
