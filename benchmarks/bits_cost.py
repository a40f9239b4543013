"""What bits cost a real model: bundles at several settings beside llama.cpp's quantisations of the same weights.

    python benchmarks/bits_cost.py SOURCE plain-english.txt.gz [--settings 4,4-data,4-data-128,8]
        [--data chats.jsonl --also others.jsonl] [--plot docs/bits-cost.svg]
        [--llama build/bin --gguf SOURCE-f32.gguf --types Q4_0,Q4_K_M,Q5_K_M]
        [--genai build/genai --genai-types default,k_quant_mixed]

SOURCE is a checkpoint's folder or a GGUF file. The text has a sentence a line, 40 are a text, cut to 512 tokens.
Rounding and llama.cpp's importance matrix see lines 1 to 1,600; what the bits cost is measured on lines 2,001 to 2,800,
and on a second kind of text, code of Python's standard library, that nothing saw. Bundles are run by the runtime, with
its activations; llama.cpp's files are read by transformers, dequantised: what their weights lost, nothing else;
onnxruntime-genai (`--genai`, a folder for an environment of its own) builds its graphs without data, and onnxruntime
runs them. A model of one task is rounded on its own chats (`--data`), and measured on others of them (`--also`) beside
the two. What stands in `--folder` is measured as it is, so that a table may grow.

A setting is `4` or `8`, with `-data` where it is rounded with data, a block size, `-embedding4` for an embedding at 4
bits and `-most253` for 253 MB at most: `4-data-128`, `4-data-most253`.
"""

from __future__ import annotations

import argparse
import gzip
import importlib
import inspect
import json
import math
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from conversion_quality import TEXT_TOKENS, load, texts_of
from numpy.typing import NDArray
from peers import GENAI, GENAI_NEEDS, make_environment, python
from transformers import AutoTokenizer

from rrt_edge.exporters import export
from rrt_edge.runtime import Model
from rrt_edge.runtime.running.runner import Call

Float = NDArray[np.float32]
Logits = Callable[[list[int]], Float]  # [S, V] of token ids
MODULES = ("argparse", "calendar", "csv", "difflib", "fractions", "heapq", "shutil", "textwrap")
CODE_TEXTS = 20


@dataclass
class Row:
    """A form of the model, and what it loses on each kind of text."""

    name: str
    bytes: int
    seconds: float
    logits: Logits
    kl: dict[str, float] = field(default_factory=dict)
    same: dict[str, float] = field(default_factory=dict)
    ratio: dict[str, float] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--settings", default="4,4-data,4-data-128,8")
    parser.add_argument("--data", type=Path, help="texts or chats for rounding, in the place of lines of the text")
    parser.add_argument("--also", type=Path, help="texts or chats that are measured on as well")
    parser.add_argument("--tokens", type=int, default=16384, help="that rounding reads")
    parser.add_argument("--llama", type=Path, help="the folder of llama.cpp's programs")
    parser.add_argument("--gguf", type=Path, help="the source as a GGUF file in floats, for llama.cpp")
    parser.add_argument("--types", default="Q4_0,Q4_K_M,Q5_K_M")
    parser.add_argument("--genai", type=Path, help="the folder of onnxruntime-genai's environment, made where missing")
    parser.add_argument("--genai-types", default="default,k_quant_mixed")
    parser.add_argument("--texts", type=int, default=20, help="of each kind that are measured")
    parser.add_argument("--folder", type=Path, default=Path("build/bits-cost"))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(arguments.text, "rt", encoding="utf-8") as file:
        lines = [line.strip() for _, line in zip(range(2800), file, strict=False)]
    tokenizer, data = tokenizer_of(arguments.source), arguments.data or arguments.folder / "texts.jsonl"
    if not arguments.data:
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts_of(lines[:1600])), "utf-8")
    with ExitStack() as opened:
        rows = [ours(arguments, setting, data, opened) for setting in arguments.settings.split(",") if setting]
        if arguments.llama:
            seen = texts_in(data, tokenizer)
            rows += [llamas(arguments, kind, seen) for kind in arguments.types.split(",")]
        if arguments.genai:
            make_environment(arguments.genai, [GENAI, *GENAI_NEEDS])
            rows += [genais(arguments, kind) for kind in arguments.genai_types.split(",")]
        exact = of_folder(arguments.source)
        kinds = {"English": texts_of(lines[2000:2800])[: arguments.texts], "code": code()[: arguments.texts]}
        if arguments.also:
            kinds["own"] = texts_in(arguments.also, tokenizer)[: 8 * arguments.texts]  # shorter ones
        for kind, texts in kinds.items():
            measure(kind, exact, rows, [tokenizer(text)["input_ids"][:TEXT_TOKENS] for text in texts])
    heads = [f"{figure}: {kind}" for figure in ("perplexity to the source's", "KL", "same top token") for kind in kinds]
    print(f"| | MB | {' | '.join(heads)} | s |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [f"{row.ratio[kind]:.3f}" for kind in kinds] + [f"{row.kl[kind]:.4f}" for kind in kinds]
        cells += [f"{row.same[kind]:.1%}" for kind in kinds]
        print(f"| {row.name} | {row.bytes / 1e6:.1f} | {' | '.join(cells)} | {row.seconds:.0f} |")
    if arguments.plot:
        plot(rows, arguments.plot)


def ours(arguments: argparse.Namespace, setting: str, data: Path, opened: ExitStack) -> Row:
    """A bundle, opened."""
    bundle = arguments.folder / setting

    def make() -> None:
        report = export(arguments.source, bundle, loops=1, **options_of(setting, data, arguments.tokens))
        print(f"{setting}: {report.peak_memory_bytes / 1e6:.0f} MB at most in memory", flush=True)

    seconds = made(bundle, make)
    runner = opened.enter_context(Model.load(bundle, device="cpu")).runner

    def logits(ids: list[int]) -> Float:
        call = Call(np.array(ids, np.int64), 0, 1, 1, logit_rows=tuple(range(len(ids))))
        return runner.run(runner.bind(), runner.new_cache(), call).logits

    return Row(f"`{setting}`", bytes_of(bundle), seconds, logits)


def made(out: Path, make: Callable[[], object]) -> float:
    """The seconds that making it took, then or now."""
    told = out.with_name(out.name + ".seconds")
    if not told.exists():
        started = time.perf_counter()
        make()
        told.write_text(f"{time.perf_counter() - started:.1f}", "utf-8")
    return float(told.read_text("utf-8"))


def bytes_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def options_of(setting: str, data: Path, tokens: int) -> dict[str, Any]:
    """What export is given."""
    bits, *others = setting.split("-")
    options: dict[str, Any] = {"bits": int(bits) if bits.isdigit() else bits}
    for name in others:
        if name == "data":
            options |= {"data": data, "data_tokens": tokens}
        elif name.startswith("most"):
            options["max_size"] = int(float(name.removeprefix("most")) * 1e6)
        elif name == "embedding4":
            options["eight_bit"] = ()
        else:
            options["block_size"] = int(name)
    return options


def llamas(arguments: argparse.Namespace, kind: str, texts: Sequence[str]) -> Row:
    """llama.cpp's quantisation of the source, with an importance matrix of the texts that ours is rounded on."""
    programs, folder = arguments.llama, arguments.folder
    matrix, out = folder / "importance.gguf", folder / kind / "model.gguf"

    def weigh() -> None:
        text, options = folder / "texts.txt", ["-c", TEXT_TOKENS, "--parse-special"]
        text.write_text("\n".join(texts), "utf-8")
        chunks = arguments.tokens // TEXT_TOKENS
        run([programs / "llama-imatrix", "-m", arguments.gguf, "-f", text, "-o", matrix, "--chunks", chunks, *options])

    def quantise() -> None:
        out.parent.mkdir(exist_ok=True)
        run([programs / "llama-quantize", "--imatrix", matrix, arguments.gguf, out, kind])

    seconds = made(matrix, weigh) + made(out, quantise)
    return Row(f"llama.cpp {kind}", out.stat().st_size, seconds, of_folder(out))


def genais(arguments: argparse.Namespace, kind: str) -> Row:
    """onnxruntime-genai's graph of the source at 4 bits, by one of its ways of rounding."""
    source, out = arguments.source, arguments.folder / f"genai-{kind}"
    if source.is_file():
        source = arguments.folder / "source"
        if not source.exists():
            model = load(arguments.source.resolve().parent, gguf_file=arguments.source.name)
            model.hf_quantizer = None  # which saves nothing that was a GGUF file
            del model.config.quantization_config
            model.save_pretrained(source)
            tokenizer_of(arguments.source).save_pretrained(source)

    def build() -> None:
        options = ["-p", "int4", "-e", "cpu", "--extra_options", f"algo_config={kind}"]
        run([python(arguments.genai), "-m", "onnxruntime_genai.models.builder", "-i", source, "-o", out, *options])

    seconds = made(out, build)
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    decoder = json.loads((out / "genai_config.json").read_text("utf-8"))["model"]["decoder"]
    nothing = np.zeros((1, decoder["num_key_value_heads"], 0, decoder["head_size"]), np.float32)
    empty = {each.name: nothing for each in session.get_inputs() if each.name.startswith("past")}

    def logits(ids: list[int]) -> Float:
        row = np.array([ids], np.int64)
        whole: Float = session.run(["logits"], {"input_ids": row, "attention_mask": np.ones_like(row), **empty})[0][0]
        return whole

    return Row(f"onnxruntime-genai {kind}", bytes_of(out), seconds, logits)


def run(command: Sequence[str | Path | int]) -> None:
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def of_folder(source: Path) -> Logits:
    """transformers' logits, in float32."""
    model = load(source.resolve().parent, gguf_file=source.name) if source.is_file() else load(source)

    @torch.no_grad()
    def logits(ids: list[int]) -> Float:
        whole: Float = model(torch.tensor([ids])).logits[0].numpy()
        return whole

    return logits


def tokenizer_of(source: Path) -> Any:
    options = {"gguf_file": source.name} if source.is_file() else {}
    return AutoTokenizer.from_pretrained(source.resolve().parent if source.is_file() else source, **options)


def texts_in(path: Path, tokenizer: Any) -> list[str]:
    """Texts of a file of records, chats as the model's template writes them."""
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return [
        record["text"] if "text" in record else tokenizer.apply_chat_template(record["messages"], tokenize=False)
        for record in records
    ]


def code() -> list[str]:
    """Modules of the standard library, from a place in the middle on."""
    sources = [inspect.getsource(importlib.import_module(name)).splitlines() for name in MODULES]
    pieces = [lines[start : start + 60] for lines in sources for start in range(len(lines) // 3, len(lines) - 60, 120)]
    return ["\n".join(piece) for piece in pieces[:CODE_TEXTS]]


def measure(kind: str, exact: Logits, rows: Sequence[Row], texts: Sequence[list[int]]) -> None:
    kl, same = np.zeros(len(rows)), np.zeros(len(rows))
    losses, positions = np.zeros(len(rows) + 1), 0
    for ids in texts:
        p, targets = log_softmax(exact(ids)), (torch.arange(len(ids) - 1), torch.tensor(ids[1:]))
        probabilities, likeliest = p.exp(), p.argmax(-1)
        positions += len(ids)
        losses[-1] -= float(p[targets].double().sum())
        for number, row in enumerate(rows):
            q = log_softmax(row.logits(ids))
            kl[number] += float((probabilities * (p - q)).sum(-1).double().sum())
            same[number] += int((likeliest == q.argmax(-1)).sum())
            losses[number] -= float(q[targets].double().sum())
    predicted = positions - len(texts)
    print(f"{kind}: {positions:,} tokens, the source's perplexity {math.exp(losses[-1] / predicted):.2f}", flush=True)
    for number, row in enumerate(rows):
        row.kl[kind], row.same[kind] = kl[number] / positions, same[number] / positions
        row.ratio[kind] = math.exp((losses[number] - losses[-1]) / predicted)


def log_softmax(logits: Float) -> torch.Tensor:
    return torch.log_softmax(torch.from_numpy(logits), -1)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Bytes against KL on English."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "bits"
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.5, 4))
    for row in rows:
        axes.plot(row.bytes / 1e6, row.kl["English"], "s" if row.name.startswith("llama") else "o")
        axes.annotate(
            row.name.strip("`"), (row.bytes / 1e6, row.kl["English"]), xytext=(5, 4), textcoords="offset points"
        )
    axes.set_yscale("log")
    axes.set(xlabel="MB", ylabel="mean KL to the source, nats")
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
