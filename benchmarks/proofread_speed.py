"""The proofreader's bundle beside its teacher in llama.cpp: seconds and right answers on the same texts.

    python benchmarks/proofread_speed.py samples/proofread/bundle build/proofread/teacher build/proofread/heldout.jsonl
        [--first 60] [--repeats 3] [--policies undrafted,full,balanced,fast] [--threads 2]

The teacher is written as a GGUF file and brought to Q4_0 by llama.cpp, in an environment of its own that `peers.py`
makes; it runs with flash attention, and once more with drafts from n-grams. The GGUF stays in the folder and is written
once. `undrafted` is full depth without drafts. All correct one text after another, greedily, each row in processes of
its own, which take turns; seconds are from the prompts' token ids to the replies, and the table has medians. Answers
are the models' own, without the sample's checks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from peers import GGUF_NEEDS, HERE, LLAMA_CPP, check_idle, last_line, make_environment, processor, python, undrafted

SAMPLE = HERE.parent / "samples" / "proofread"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--first", type=int, default=60, help="texts of the set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--policies", default="undrafted,full,balanced,fast")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--environment", type=Path, default=Path("build/peers/environment"))
    parser.add_argument("--folder", type=Path, default=Path("build/proofread-speed"))
    parser.add_argument("--of", metavar="POLICY", help=argparse.SUPPRESS)  # what a process of its own does
    arguments = parser.parse_args()
    sys.path.append(str(SAMPLE))
    if arguments.of:
        print(json.dumps(of_bundle(arguments, arguments.of)))
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    make_environment(arguments.environment, [LLAMA_CPP, *GGUF_NEEDS])
    gguf = arguments.folder / "teacher-q4_0.gguf"
    if not gguf.is_file():
        write = [python(arguments.environment), HERE / "peer_runs.py", "write_gguf", arguments.teacher, gguf]
        subprocess.run(write, check=True)
    check_idle()
    teacher = Teacher(arguments, gguf)
    names = [f"llama.cpp, the teacher at Q4_0{more}" for more in ("", ", n-gram drafts")]
    runs: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.repeats):
        for name, drafts in zip(names, (False, True), strict=True):
            runs.setdefault(name, []).append(teacher.run(drafts))
        for policy in arguments.policies.split(","):
            run = last_line([sys.executable, *sys.argv, "--of", policy])
            runs.setdefault(f"the bundle, `{policy}`", []).append(run)
    show(arguments, runs)


def show(arguments: argparse.Namespace, runs: dict[str, list[dict[str, Any]]]) -> None:
    import pairs
    import scoring

    chosen = pairs.read_pairs(arguments.texts)[: arguments.first]
    texts, right = [text for text, _ in chosen], [target for _, target in chosen]
    seconds = {name: median(run["seconds"] for run in several) for name, several in runs.items()}
    first = next(iter(seconds.values()))
    print(f"{processor()}, {arguments.threads} threads; {len(texts)} texts, medians of {arguments.repeats} in turn\n")
    print("| | seconds a text | times as fast | tokens/s | exactly right | F0.5 | peak MB |")
    print("|---|---|---|---|---|---|---|")
    for name, several in runs.items():
        scores = scoring.score(texts, right, several[0]["answers"])
        speed, peak = several[0]["tokens"] / seconds[name], median(run["peak"] for run in several)
        print(
            f"| {name} | {seconds[name] / len(texts):.3f} | {first / seconds[name]:.2f} | {speed:.0f} | "
            f"{scores.exact:.3f} | {scores.f05:.2f} | {peak / 1e6:.0f} |"
        )


class Teacher:
    """The texts as prompts of the teacher, which llama.cpp answers."""

    def __init__(self, arguments: argparse.Namespace, gguf: Path) -> None:
        import pairs
        from proofread.replies import most_tokens
        from transformers import AutoTokenizer

        self._gguf, self._environment = gguf, arguments.environment
        self._tokenizer = AutoTokenizer.from_pretrained(arguments.teacher)
        prompts = []
        for text, _ in pairs.read_pairs(arguments.texts)[: arguments.first]:
            chat = [{"role": "user", "content": text}]
            prompt = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            ids = self._tokenizer.encode(prompt, add_special_tokens=False)
            prompts.append((ids, most_tokens(len(ids))))
        file = arguments.folder / "prompts.json"
        file.write_text(json.dumps(prompts), "utf-8")
        config = json.loads((arguments.teacher / "config.json").read_text("utf-8"))
        self._settings = {
            "threads": arguments.threads,
            "vocabulary": config["vocab_size"],
            "ends": [self._tokenizer.eos_token_id],
            "file": str(file),
        }

    def run(self, drafts: bool) -> dict[str, Any]:
        settings = json.dumps({**self._settings, "drafts": drafts})
        command = [python(self._environment), HERE / "peer_runs.py", "llama_cpp_replies", self._gguf, settings]
        done = last_line(command)
        answers = [self._tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in done["replies"]]
        return {**done, "answers": answers, "tokens": sum(map(len, done["replies"]))}


def of_bundle(arguments: argparse.Namespace, name: str) -> dict[str, Any]:
    """The replies of the bundle under a policy, and their seconds."""
    import pairs
    from score_bundle import prompts_of, replies_to

    from rrt_edge.runtime import Model

    texts = [text for text, _ in pairs.read_pairs(arguments.texts)[: arguments.first]]
    with Model.load(arguments.bundle, device="cpu", threads=arguments.threads) as model:
        policy = undrafted(model) if name == "undrafted" else name
        prompts = prompts_of(model, texts)
        replies_to(model, prompts[:1], policy)
        started = time.perf_counter()
        replies = replies_to(model, prompts, policy)
        return {
            "seconds": time.perf_counter() - started,
            "answers": [one.text.strip() for one in replies],
            "tokens": sum(len(one.tokens) for one in replies),
            "peak": replies[-1].stats.peak_memory_bytes,
        }


if __name__ == "__main__":
    main()
