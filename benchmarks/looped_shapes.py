"""Looped models at their real shapes, with random weights: export, memory, load, and tokens/s at each depth.

    python benchmarks/looped_shapes.py [FOLDER] [--models ouro-1.4b,nanbeige-3b] [--bits 8,4]

Writes checkpoints in bfloat16 and bundles into FOLDER (build/looped-shapes; 5 GB for Ouro, 15 for Nanbeige; what is
there is reused) and prints a table: the bundle's size, what export took and held at most, what a loaded model holds,
tokens/s of replies at each depth that may be read, in turn, and bytes of keys and values for a token. Run it alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "ouro-1.4b": {
        "model_type": "ouro", "architectures": ["OuroForCausalLM"], "vocab_size": 49152, "hidden_size": 2048,
        "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 1e6, "total_ut_steps": 4,
        "max_position_embeddings": 65536, "tie_word_embeddings": False,
    },
    "nanbeige-3b": {
        "model_type": "nanbeige", "architectures": ["NanbeigeForCausalLM"], "vocab_size": 166144, "hidden_size": 3072,
        "intermediate_size": 10752, "num_hidden_layers": 22, "num_attention_heads": 48, "num_key_value_heads": 8,
        "head_dim": 128, "hidden_act": "silu", "rms_norm_eps": 1e-5, "rope_theta": 7e7, "num_loops": 2,
        "skip_loop_final_norm": False, "max_position_embeddings": 262144, "tie_word_embeddings": False,
    },
}  # fmt: skip
PROMPT, NEW, REPEATS = 64, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("build/looped-shapes"))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--bits", default="8,4")
    arguments = parser.parse_args()
    print(
        "| model | bits | bundle MB | export s | export peak MB | loaded MB | tokens/s at depths | KV bytes a token |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in arguments.models.split(","):
        checkpoint = arguments.folder / name / "checkpoint"
        if not (checkpoint / "config.json").is_file():
            write_checkpoint(checkpoint, MODELS[name])
        for bits in arguments.bits.split(","):
            row(name, checkpoint, arguments.folder / name / f"bundle-{bits}", bits)


def row(name: str, checkpoint: Path, bundle: Path, bits: str) -> None:
    kept = bundle.with_suffix(".json")
    if not kept.is_file():
        exported = command("export", checkpoint, bundle, "--bits", bits, "--json")
        kept.write_text(json.dumps(exported), "utf-8")
    exported = json.loads(kept.read_text("utf-8"))
    from rrt_edge.runtime.bundle.manifest import Manifest

    shape = Manifest.read(bundle).architecture
    tests = ",".join("decode:full" if depth == shape.loops else f"decode:depth={depth}" for depth in shape.exits)
    sizes = ["--prompt", PROMPT, "--new", NEW, "--repeats", REPEATS]
    results = command("bench", bundle, "--tests", tests, *sizes, "--json")
    speeds = ", ".join(
        f"{depth}: {result['tokens_per_second']:.1f}" for depth, result in zip(shape.exits, results, strict=True)
    )
    cells = [name, bits, f"{exported['bytes'] / 1e6:.0f}", f"{exported['seconds']:.0f}"]
    cells += [f"{exported['peak_memory_bytes'] / 1e6:.0f}", f"{max(r['peak_memory_bytes'] for r in results) / 1e6:.0f}"]
    print(f"| {' | '.join([*cells, speeds, f'{shape.kv_bytes_per_token:,}'])} |", flush=True)


def command(*arguments: object) -> Any:
    run = [sys.executable, "-P", "-c", "from rrt_edge.cli import main; main()", *map(str, arguments)]
    return json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def write_checkpoint(folder: Path, fields: dict[str, Any]) -> None:
    """Weights in bfloat16, a file for each layer, so that one is in memory at a time."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    torch.manual_seed(0)
    for number, shapes in enumerate(pieces(fields)):
        file = f"model-{number:05}.safetensors"
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if "norm" in name
            else torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02)
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}), "utf-8")
    words = {f"w{index}": index for index in range(fields["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**fields, "eos_token_id": None}), "utf-8")


def pieces(fields: dict[str, Any]) -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of the tensors, layer by layer."""
    hidden, inner, vocabulary = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    q, kv = (fields[f"num_{kind}_heads"] * fields["head_dim"] for kind in ("attention", "key_value"))
    ouro = fields["model_type"] == "ouro"
    yield {"model.embed_tokens.weight": (vocabulary, hidden)}
    yield {"lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    if ouro:
        yield {"model.early_exit_gate.weight": (1, hidden), "model.early_exit_gate.bias": (1,)}
    matrices = {
        "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
        "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }  # fmt: skip
    norms = ["input_layernorm", "post_attention_layernorm"]
    norms += ["input_layernorm_2", "post_attention_layernorm_2"] if ouro else []
    for layer in range(fields["num_hidden_layers"]):
        shapes: dict[str, tuple[int, ...]] = {**matrices, **dict.fromkeys(norms, (hidden,))}
        yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}


if __name__ == "__main__":
    main()
