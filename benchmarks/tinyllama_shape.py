"""Early exit, size and memory at TinyLlama-1.1B's shape: 2 loops x 11 layers, rank 64, int4, random weights.

    python benchmarks/tinyllama_shape.py [FOLDER]

Writes two checkpoints and two bundles into FOLDER (build/tinyllama-shape; about 5 GB, reused when there) and prints:
the bundles' bytes; decode time of a token leaving after loop 1 against full depth and against the unshared model, from
interleaved steps at KV 128 to 384; and, each in a process of its own, peak (VmHWM), resident and private memory.
Run it alone: the machine's other work is in the numbers.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SHAPE = {
    "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 2048,
}  # fmt: skip
FIRST_KV, LAST_KV = 128, 384  # tokens held while timing
WARM_UP = 8  # steps


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


def time_steps(recursive: Path, unshared: Path) -> None:
    """Interleaved single-token steps of the three ways, each with a cache of its own."""
    from rrt_edge.runtime import ExitPolicy, Model
    from rrt_edge.runtime.decoder import Decoder

    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 32000, FIRST_KV).tolist()
    with Model.load(recursive) as two, Model.load(unshared) as one:
        ways = {
            "full depth": (Decoder(two.graph), ExitPolicy()),
            "leaving after loop 1": (Decoder(two.graph), ExitPolicy(depth=1)),
            "unshared model": (Decoder(one.graph), ExitPolicy()),
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for decoder, _ in ways.values():
            decoder.prefill(prompt, ExitPolicy())
        for token in rng.integers(3, 32000, LAST_KV - FIRST_KV).tolist():
            for name, (decoder, policy) in ways.items():
                started = time.perf_counter()
                decoder.step(token, policy)
                times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}
    for name, seconds in medians.items():
        print(f"{name}: {seconds * 1e3:.2f} ms a token, {seconds / medians['full depth']:.3f} of full depth")


def measure_memory(bundle: Path) -> dict[str, float]:
    """MiB of a fresh process that loads the bundle and generates a few tokens."""
    code = f"""
import json, re
from pathlib import Path
from rrt_edge.runtime import Model, Sampling
def figures():
    status = Path("/proc/self/status").read_text() + Path("/proc/self/smaps_rollup").read_text()
    read = lambda name: sum(int(n) for n in re.findall(name + r":\\s+(\\d+) kB", status)) / 1024
    return {{"peak": read("VmHWM"), "resident": read("VmRSS"), "private": read("Private_(?:Clean|Dirty)")}}
with Model.load({str(bundle)!r}) as model:
    loaded = figures()
    model.generate(list(range(5, 37)), Sampling(max_tokens=8))
    print(json.dumps({{"loaded": loaded, "generated": figures()}}))
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("build/tinyllama-shape")
    folder.mkdir(parents=True, exist_ok=True)
    recursive, unshared = make_bundle(folder, 2, 64), make_bundle(folder, 1, 0)
    sizes = [sum(path.stat().st_size for path in bundle.iterdir()) for bundle in (recursive, unshared)]
    print(f"bundle bytes: {sizes[0]:,} with 2 loops, {sizes[1]:,} unshared, ratio {sizes[0] / sizes[1]:.3f}")
    time_steps(recursive, unshared)
    for name, bundle in (("2 loops", recursive), ("unshared", unshared)):
        found = measure_memory(bundle)
        for moment, figures in found.items():
            shown = ", ".join(f"{key} {value:.0f}" for key, value in figures.items())
            print(f"{name}, {moment}: MiB {shown}")


if __name__ == "__main__":
    main()
