"""llama.cpp and onnxruntime-genai beside rrt-edge: one random checkpoint of a shape, int4, the same threads and tokens.

    python benchmarks/peers.py prepare    once: 20 minutes or more
    python benchmarks/peers.py run [--shape tinyllama,smollm,demo] [--rows one,exits,batch4,batch8,questions]
    python benchmarks/peers.py table [--into docs/benchmarks.md]    what was measured so far

`prepare` makes an environment with both peers (they are no dependencies; `--environment` names another that has them),
a checkpoint of random weights, llama.cpp's Q4_0 and onnxruntime-genai's int4 of it, and our bundles of the shape, with
random weights too; what is there is reused. `run` measures one part after another and keeps what it finds in
`results.json` in the folder, from which all tables are printed. It refuses to start while the machine is busy, and runs
a process again in whose time other work took part of the processors.

A part is a shape and one kind of rows. Its models are run in turn, each in a process of its own, so many times; the
tables show medians, and ratios within the part. The peers run the model unshared, with flash attention (llama.cpp), and
once more with drafts from n-grams. Ours at full depth has rows without drafts, with a stated share of drafts that stand
(*simulated*: that alone is drawn; drafting, both rows, keys and values and dropped rows are really done, `rrt-edge
bench --tests decode:full:accept=0.8`), and as it runs by itself. The demo is trained: there the share is measured.
"As before" is the same bundle without its block graph and without drafts, which is how all bundles ran earlier.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from peer_tables import BLOCKS, PARTS, Contender, Measured, rewrite, tables

PROMPTS = {"batch8": 64}  # tokens by kind of rows
PROMPT, NEW = 256, 128  # otherwise, and new ones
REPEATS = {"batch4": 2, "batch8": 2}  # by kind of rows, otherwise 3
LLAMA_CPP, GENAI = "llama-cpp-python==0.3.36", "onnxruntime-genai==0.18.0"
GENAI_NEEDS = ["torch==2.13.0", "transformers", "onnx-ir", "onnx", "sentencepiece"]  # to build its models
GGUF_NEEDS = ["gguf", "numpy", "safetensors", "ml_dtypes"]
LOOPS = {"tinyllama": 2, "smollm": 3}
RANK = 64
MERGED_SHAPES = ("smollm",)  # small enough to gain from weights of each depth's own
MOST_BUSY = 0.1  # of the processors, by others, before a run
MOST_BESIDE, TRIES = 0.03, 3  # of the processors, by others, while a process is timed; how often it is
PATIENCE = 20  # seconds within which the machine must become idle
QUESTIONS, WARM_UP = 200, 20  # that the demo answers, and those before them that do not count
LONGEST = 64  # tokens of an answer
HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "samples" / "pydoc"


def prepare(folder: Path, shape: str, environment: Path) -> None:
    home = folder / shape
    home.mkdir(parents=True, exist_ok=True)
    if shape == "demo":
        prepare_demo(home)
        return
    make_environment(environment, [LLAMA_CPP, GENAI, *GENAI_NEEDS, *GGUF_NEEDS])
    checkpoint = home / "checkpoint"
    if not (checkpoint / "model.safetensors").is_file():
        write_checkpoint(checkpoint, shape)
    gguf = home / "llama.gguf"
    if not gguf.is_file():
        subprocess.run([python(environment), HERE / "peer_runs.py", "write_gguf", checkpoint, gguf], check=True)
    for size in BLOCKS:
        model = home / f"genai-{size}"
        if not (model / "genai_config.json").is_file():
            builder = [python(environment), "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", model]
            options = ["-p", "int4", "-e", "cpu", "--extra_options", f"block_size={size}"]
            subprocess.run([*builder, *options], check=True)
    from rrt_edge.exporters.shapes import random_bundle

    forms = [("bundle", LOOPS[shape], RANK, False), ("unshared", 1, 0, False)]
    if shape in MERGED_SHAPES:
        forms.append(("merged", LOOPS[shape], RANK, True))
    for size in BLOCKS:
        for name, loops, rank, merge in forms:
            out = home / f"{name}-{size}"
            if not (out / "manifest.json").is_file():
                random_bundle(shape, out, loops=loops, rank=rank, block_size=size, merge_adapters=merge)
    as_before(home / f"bundle-{BLOCKS[0]}", home / "before")


def prepare_demo(home: Path) -> None:
    from rrt_edge import export

    if not (home / "heldout.jsonl").is_file():
        subprocess.run([sys.executable, DEMO / "recipe.py", home], check=True)
    if not (home / "bundle" / "manifest.json").is_file():
        export(DEMO / "recursive", home / "bundle", bits=4)
    as_before(home / "bundle", home / "before")


def as_before(bundle: Path, copy: Path) -> None:
    """The bundle without its block graph: as bundles were before, and ran."""
    from rrt_edge.runtime.bundle.block_contract import BLOCK_GRAPH
    from rrt_edge.runtime.bundle.manifest import digest

    if (copy / "manifest.json").is_file():
        return
    shutil.copytree(bundle, copy, dirs_exist_ok=True)
    (copy / BLOCK_GRAPH).unlink()
    fields = json.loads((copy / "manifest.json").read_text("utf-8"))
    del fields["files"][BLOCK_GRAPH]
    fields["sha256"] = digest(fields)
    (copy / "manifest.json").write_text(json.dumps(fields, indent=2), "utf-8")


def python(environment: Path) -> Path:
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_environment(folder: Path, packages: list[str]) -> None:
    """A virtual environment with packages, llama.cpp among them built for this machine and optimised."""
    ready = folder / "ready"  # what was installed
    there = ready.read_text("utf-8").splitlines() if ready.is_file() else []
    packages = [package for package in packages if package not in there]
    if not packages:
        return
    if not there:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    flags = {"CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"}
    pip = [python(folder), "-m", "pip", "install", "--quiet", "--no-binary", "llama-cpp-python"]
    subprocess.run([*pip, *packages], check=True, env={**os.environ, **flags})
    ready.write_text("\n".join([*there, *packages]) + "\n", "utf-8")


def write_checkpoint(folder: Path, shape: str) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from rrt_edge.exporters.shapes import SHAPES

    torch.manual_seed(0)
    config = LlamaConfig(**SHAPES[shape], bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    words = {f"w{index}": index for index in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="w1", eos_token="w2").save_pretrained(folder)


def undisturbed(
    contender: Contender, home: Path, threads: int, environment: Path, prompt: int
) -> tuple[list[Measured], float]:
    """One process of a contender, again where other work ran meanwhile; with the share of the processors that took."""
    tries: list[tuple[float, list[Measured]]] = []
    while not tries or (min(share for share, _ in tries) > MOST_BESIDE and len(tries) < TRIES):
        started, used, own = time.perf_counter(), used_seconds(), children_seconds()
        tests = measure(contender, home, threads, environment, prompt)
        beside = used_seconds() - used - (children_seconds() - own)
        tries.append((beside / (time.perf_counter() - started) / (os.cpu_count() or 1), tests))
    share, tests = min(tries, key=lambda one: one[0])
    return tests, share


def used_seconds() -> float:
    """Seconds that all processors have worked or were taken away for others, since the machine started."""
    numbers = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(numbers) - numbers[3] - numbers[4]) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """What the processes that were started and have ended worked."""
    times = os.times()
    return times.children_user + times.children_system


def measure(contender: Contender, home: Path, threads: int, environment: Path, prompt: int) -> list[Measured]:
    """One process of a contender: its tests, one after another."""
    path = home / contender.file
    settings: dict[str, Any] = {"threads": threads, "prompt": prompt, "new": NEW, "tests": contender.tests}
    if contender.engine == "ours":
        module = "rrt_edge.runtime.measuring.bench"
        settings["repeats"] = 1
        report = last_line([sys.executable, "-P", "-m", module, path, json.dumps(settings)])
        if "rows" not in report:
            raise SystemExit(f"{path}: {report['error']['message']}")
        return [of_bench(row, prompt) for row in report["rows"]]
    if contender.engine == "questions":
        command = [sys.executable, HERE / "peers.py", "questions", path, json.dumps(settings)]
        return [Measured(**run) for run in last_line(command)]
    config = json.loads((home / "checkpoint" / "config.json").read_text())
    settings["vocabulary"] = config["vocab_size"]
    command = [python(environment), HERE / "peer_runs.py", contender.engine, path, json.dumps(settings)]
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size = sum(file.stat().st_size for file in files)
    return [Measured(**run, bytes=size) for run in last_line(command)]


def last_line(command: list[Any]) -> Any:
    """What a process printed last, as JSON."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def of_bench(row: dict[str, Any], prompt: int) -> Measured:
    """A row of `rrt-edge bench`; the time to the first token is that of the prompts with their first tokens."""
    return Measured(
        test=row["test"],
        decode=row["tokens_per_second"],
        prefill=row["batch"] * prompt / row["ttft_s"],
        steps=row["steps_per_token"],
        peak=row["peak_memory_bytes"],
        bytes=row["bundle_bytes"],
    )


def answer_questions(bundle: Path, settings: dict[str, Any]) -> list[Measured]:
    """The demo's held-out questions, one after another, greedily: tokens a second behind each answer's first."""
    from rrt_edge.runtime import ExitPolicy, Model

    lines = (bundle.parent / "heldout.jsonl").read_text("utf-8").splitlines()[: WARM_UP + QUESTIONS]
    questions = [json.loads(line)["messages"][:1] for line in lines]
    with Model.load(bundle, threads=settings["threads"]) as model:
        policies = {"full without drafts": undrafted(model), "full": ExitPolicy()}
        return [answered(model, questions, test, policies[test], bundle) for test in settings["tests"]]


def undrafted(model: Any) -> Any:
    """Full depth of each token by itself."""
    from rrt_edge.runtime import ExitPolicy

    return ExitPolicy(trace=(model.loops,))


def answered(model: Any, questions: list[Any], test: str, policy: Any, bundle: Path) -> Measured:
    """What the answers to all but the first questions took."""
    from rrt_edge.runtime import Sampling

    sampling = Sampling(max_tokens=LONGEST)
    replies = [  # whose steps are those of tokens alone: no prompt waits for its deeper loops
        model.session(lazy_prompt=False).generate(model.encode_chat(question), sampling, policy).stats
        for question in questions
    ][WARM_UP:]
    several = [stats for stats in replies if stats.generated_tokens > 1]
    drafted = sum(stats.drafted for stats in replies)
    behind = [stats.generated_tokens - 1 for stats in several]
    seconds = sum(count / stats.decode_tokens_per_second for count, stats in zip(behind, several, strict=True))
    return Measured(
        test=test,
        decode=sum(behind) / seconds,
        prefill=sum(stats.prompt_tokens for stats in replies) / sum(stats.time_to_first_token_s for stats in replies),
        steps=sum(stats.steps_per_token * stats.generated_tokens for stats in replies)
        / sum(stats.generated_tokens for stats in replies),
        peak=replies[-1].peak_memory_bytes,
        bytes=sum(file.stat().st_size for file in bundle.iterdir()),
        stood=sum(stats.accepted for stats in replies) / drafted if drafted else None,
    )


def check_idle() -> None:
    """Refuse to go on where the machine does not become idle."""
    busy = next((share for share in (busy_share() for _ in range(PATIENCE)) if share <= MOST_BUSY), 1.0)
    if busy > MOST_BUSY:
        raise SystemExit(f"the machine is busy ({busy:.0%}): nothing is timed; stop what else runs and start again")


def busy_share() -> float:
    """What share of the processors others use just now."""
    before = used_seconds()
    time.sleep(1)
    return (used_seconds() - before) / (os.cpu_count() or 1)


def processor() -> str:
    """The processor's name, and which of the instructions that matter it has."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    has = fields["flags"].split()
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16"}
    model = f"{fields['model name']}, family {fields['cpu family']} model {fields['model']}"
    return f"{os.cpu_count()} cores, {model}: {', '.join(name for flag, name in names.items() if flag in has)}"


def run(folder: Path, shape: str, rows: str, threads: int, repeats: int, environment: Path) -> None:
    check_idle()
    contenders = [one for one in PARTS[shape, rows] if (folder / shape / one.file).exists()]
    started, prompt, beside = time.perf_counter(), PROMPTS.get(rows, PROMPT), 0.0
    found: dict[str, list[list[dict[str, Any]]]] = {one.name: [] for one in contenders}
    for repeat in range(repeats):
        for one in contenders:
            tests, share = undisturbed(one, folder / shape, threads, environment, prompt)
            found[one.name].append([vars(test) for test in tests])
            beside = max(beside, share)
        results = read_results(folder)
        results[f"{shape} {rows}"] = {
            "date": datetime.date.today().isoformat(),
            "seconds": round(time.perf_counter() - started),
            "processor": processor(),
            "threads": threads,
            "beside": beside if beside > MOST_BESIDE else 0.0,
            "repeats": repeat + 1,
            "tokens": None if rows == "questions" else [prompt, NEW],
            "versions": [LLAMA_CPP, GENAI, f"onnxruntime=={metadata.version('onnxruntime')}"],
            "models": found,
        }
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(f"{shape}, {rows}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def read_results(folder: Path) -> dict[str, Any]:
    path = folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return results


def main() -> None:
    if sys.argv[1:2] == ["questions"]:
        answers = answer_questions(Path(sys.argv[2]), json.loads(sys.argv[3]))
        print(json.dumps([vars(test) for test in answers]))
        return
    shapes, kinds = (list(dict.fromkeys(part[at] for part in PARTS)) for at in (0, 1))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run", "table"])
    parser.add_argument("--shape", default=",".join(shapes), help="comma-separated (default: %(default)s)")
    parser.add_argument("--rows", default=",".join(kinds), help="comma-separated (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--environment", type=Path, help="with both peers; by default made in the folder")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, help="default: 3, of batches 2")
    parser.add_argument("--into", type=Path, help="a file whose tables are to be these, as well (docs/benchmarks.md)")
    arguments = parser.parse_args()
    folder = arguments.folder.absolute()
    environment = (arguments.environment or folder / "environment").absolute()
    chosen = [part for part in PARTS if part[0] in arguments.shape.split(",") and part[1] in arguments.rows.split(",")]
    if not chosen:
        parser.error(f"no such part: {', '.join(f'{shape} {rows}' for shape, rows in PARTS)}")
    if arguments.what == "prepare":
        for shape in dict.fromkeys(shape for shape, _ in chosen):
            prepare(folder, shape, environment)
        return
    if arguments.what == "run":
        for shape, rows in chosen:
            repeats = arguments.repeats or REPEATS.get(rows, 3)
            run(folder, shape, rows, arguments.threads, repeats, environment)
    lines = list(tables(read_results(folder)))
    print("\n".join(lines))
    if arguments.into:
        rewrite(arguments.into, lines)


if __name__ == "__main__":
    main()
