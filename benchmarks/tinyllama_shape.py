"""Early exit, size and memory at TinyLlama-1.1B's shape: 2 loops x 11 layers, rank 64, int4, random weights.

    python benchmarks/tinyllama_shape.py [FOLDER]

Writes two checkpoints and two bundles into FOLDER (build/tinyllama-shape; about 5 GB, reused when there) and prints:
the bundles' bytes; decode time of a token leaving after loop 1 against full depth, from interleaved steps at KV 128 to
384, and of the unshared model, from processes in turn; and peak (VmHWM), resident and private memory.
Run it alone: the machine's other work is in the numbers.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPE = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
FIRST_KV, LAST_KV = 128, 384  # tokens held while timing
WARM_UP = 8  # steps
ROUNDS = 3  # processes that time each bundle


def make_bundle(folder: Path, loops: int, rank: int) -> Path:
    """A bundle of random weights; the checkpoint it comes from stays beside it."""
    bundle = folder / f"bundle-{loops}"
    if (bundle / "manifest.json").is_file():
        return bundle
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    import rrt_edge

    checkpoint = folder / f"checkpoint-{loops}"
    torch.manual_seed(0)
    config = rrt_edge.RecursiveConfig(text_config=LlamaConfig(**SHAPE), loops=loops, rank=rank)
    with torch.device("meta"):
        model = rrt_edge.RecursiveForCausalLM(config)
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for name, parameter in model.named_parameters():
        torch.nn.init.ones_(parameter) if "norm" in name else torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(checkpoint)
    words = {f"w{index}": index for index in range(SHAPE["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(checkpoint)
    del model
    report = rrt_edge.export(checkpoint, bundle, bits=4)
    print(f"{bundle.name}: exported in {report.seconds:.0f} s, peak memory {report.peak_memory_bytes / 2**20:.0f} MiB")
    return bundle


def time_steps(bundle: Path, depths: tuple[int, ...]) -> dict[int, float]:
    """Median seconds a token at each depth, from interleaved steps, each depth with a cache of its own."""
    from rrt_edge.runtime import ExitPolicy, Model
    from rrt_edge.runtime.decoding.decoder import Decoder
    from rrt_edge.runtime.loaded import insides

    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 32000, FIRST_KV).tolist()
    with Model.load(bundle) as model:
        decoders = {depth: Decoder(insides(model).runner) for depth in depths}
        times: dict[int, list[float]] = {depth: [] for depth in depths}
        for decoder in decoders.values():
            decoder.prefill(prompt, ExitPolicy())
        for token in rng.integers(3, 32000, LAST_KV - FIRST_KV).tolist():
            for depth, decoder in decoders.items():
                started = time.perf_counter()
                decoder.step(token, ExitPolicy(depth=depth))
                times[depth].append(time.perf_counter() - started)
    return {depth: statistics.median(values[WARM_UP:]) for depth, values in times.items()}


def compare_times(recursive: Path, unshared: Path) -> None:
    """Alternate processes of one session each: the threads of two sessions spin in each other's way."""
    found: dict[str, list[float]] = {"full depth": [], "leaving after loop 1": [], "unshared model": []}
    for _ in range(ROUNDS):
        times = in_a_process(f"m.time_steps(m.Path({str(recursive)!r}), (1, 2))")
        found["leaving after loop 1"].append(times["1"])
        found["full depth"].append(times["2"])
        found["unshared model"].append(in_a_process(f"m.time_steps(m.Path({str(unshared)!r}), (1,))")["1"])
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, seconds in medians.items():
        spread = f"{min(found[name]) * 1e3:.1f} to {max(found[name]) * 1e3:.1f}"
        print(f"{name}: {seconds * 1e3:.1f} ms a token ({spread}), {seconds / medians['full depth']:.3f} of full depth")


def in_a_process(expression: str) -> dict[str, Any]:
    """The value of an expression over this module `m`, from a process of its own."""
    code = f"""
import importlib.util, json
spec = importlib.util.spec_from_file_location("m", {str(Path(__file__).resolve())!r})
m = importlib.util.module_from_spec(spec)
spec.loader.exec_module(m)
print(json.dumps({expression}))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def memory_figures() -> dict[str, float]:
    """MiB of this process: peak (VmHWM), resident and private memory."""
    status = Path("/proc/self/status").read_text() + Path("/proc/self/smaps_rollup").read_text()

    def read(name: str) -> float:
        return sum(int(number) for number in re.findall(name + r":\s+(\d+) kB", status)) / 1024

    return {"peak": read("VmHWM"), "resident": read("VmRSS"), "private": read("Private_(?:Clean|Dirty)")}


def measure_memory(bundle: Path) -> dict[str, dict[str, float]]:
    """Memory after loading a bundle, and after generating a few tokens."""
    from rrt_edge.runtime import Model, Sampling

    with Model.load(bundle) as model:
        loaded = memory_figures()
        model.generate(list(range(5, 37)), Sampling(max_tokens=8))
        return {"loaded": loaded, "generated": memory_figures()}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/tinyllama-shape")
    folder.mkdir(parents=True, exist_ok=True)
    recursive, unshared = make_bundle(folder, 2, 64), make_bundle(folder, 1, 0)
    sizes = [sum(path.stat().st_size for path in bundle.iterdir()) for bundle in (recursive, unshared)]
    print(f"bundle bytes: {sizes[0]:,} with 2 loops, {sizes[1]:,} unshared, ratio {sizes[0] / sizes[1]:.3f}")
    compare_times(recursive, unshared)
    for name, bundle in (("2 loops", recursive), ("unshared", unshared)):
        found = in_a_process(f"m.measure_memory(m.Path({str(bundle)!r}))")
        for moment, figures in found.items():
            shown = ", ".join(f"{key} {value:.0f}" for key, value in figures.items())
            print(f"{name}, {moment}: MiB {shown}")


if __name__ == "__main__":
    main()
