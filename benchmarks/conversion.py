"""Memory and time of converting a TinyLlama-shaped checkpoint: random weights, 2.2 GB in bfloat16, two shards.

    python benchmarks/conversion.py [--rank 64] [--folder build/conversion]

The checkpoint is made once (3 GB on disk with the result). The conversion runs in a process of its own, whose peak
is set beside what importing torch and transformers takes, and beside the recursive model and two layers in float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rrt_edge.exporters.shapes import SHAPES

RUN = """
import json, sys
from rrt_edge.conversion import convert
from rrt_edge.runtime.system.memory import peak_memory_bytes
import rrt_edge.model.modeling, transformers.models.llama.modeling_llama
before = peak_memory_bytes()
report = convert(sys.argv[1], sys.argv[2], loops=2, rank=int(sys.argv[3]))
kept = [[row.projection, row.kept] for row in report.kept]
print(json.dumps([before, report.peak_memory_bytes, report.seconds, kept]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--folder", type=Path, default=Path("build/conversion"))
    arguments = parser.parse_args()
    source, out = arguments.folder / "source", arguments.folder / "recursive"
    config = LlamaConfig(**SHAPES["tinyllama"], dtype=torch.bfloat16)
    if not (source / "config.json").is_file():
        torch.manual_seed(0)
        LlamaForCausalLM._from_config(config, dtype=torch.bfloat16).save_pretrained(source, max_shard_size="1200MB")
    command = [sys.executable, "-P", "-c", RUN, str(source), str(out), str(arguments.rank)]
    before, peak, seconds, kept = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    model = (out / "model.safetensors").stat().st_size
    hidden, inner, q, kv = config.hidden_size, config.intermediate_size, 2048, 256
    layer = 4 * (2 * hidden * q + 2 * hidden * kv + 3 * hidden * inner)
    shards = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    print(f"source {shards / 1e6:.0f} MB, recursive model {model / 1e6:.0f} MB, rank {arguments.rank}")
    print(f"{seconds:.0f} s; peak {(peak - before) / 1e6:.0f} MB above the {before / 1e6:.0f} MB of the imports")
    print(f"the recursive model and two layers in float32: {(model + 2 * layer) / 1e6:.0f} MB")
    print("energy kept: " + ", ".join(f"{projection} {share:.4f}" for projection, share in kept))


if __name__ == "__main__":
    main()
