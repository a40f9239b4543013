"""llama.cpp and onnxruntime-genai beside rrt-edge: one random checkpoint of a shape, int4, the same threads and tokens.

    python benchmarks/peers.py prepare [--shape tinyllama] [--folder build/peers]    once: 20 minutes or more
    python benchmarks/peers.py run [--shape tinyllama] [--folder build/peers] [--threads 2] [--repeats 3]

`prepare` makes an environment for each peer (they are no dependencies), a checkpoint of random weights, llama.cpp's
Q4_0 and onnxruntime-genai's int4 of it, and our bundles of the shape, with random weights too; what is there is reused.
`run` measures them in turn, each in a process of its own: a prompt of 256 tokens, then 128 new ones. The peers run the
model unshared. It refuses to start while the machine is busy.

Ours at full depth has several rows: without drafts; as it runs by itself, with the drafts that it makes and the share
of them that stands on these weights; and *simulated*, where a stated share of all drafts stands. There only that is
drawn: drafting, both rows, keys and values and dropped rows are really done (`rrt-edge bench --tests
decode:full:accept=0.8`). The table says steps a token: how often the block's weights were read for one.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT, NEW = 256, 128
LLAMA_CPP, GENAI = "llama-cpp-python==0.3.36", "onnxruntime-genai==0.18.0"
GENAI_NEEDS = ["torch==2.13.0", "transformers", "onnx-ir", "onnx", "sentencepiece"]
LOOPS = {"tinyllama": 2, "smollm": 3}
MOST_BUSY = 0.1  # of the processors, by others, before a run
HERE = Path(__file__).resolve()


def prepare(folder: Path, shape: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    llama, genai = folder / "llama-cpp", folder / "genai"
    environment(llama, ["gguf", "numpy", "safetensors", "ml_dtypes"], LLAMA_CPP)
    environment(genai, GENAI_NEEDS, GENAI)
    checkpoint = folder / shape / "checkpoint"
    if not (checkpoint / "model.safetensors").is_file():
        write_checkpoint(checkpoint, shape)
    gguf = folder / shape / "model-q4_0.gguf"
    if not gguf.is_file():
        child(llama, "write_gguf", str(checkpoint), str(gguf))
    model = folder / shape / "genai"
    if not (model / "genai_config.json").is_file():
        builder = [str(python(genai)), "-m", "onnxruntime_genai.models.builder"]
        subprocess.run([*builder, "-i", checkpoint, "-o", model, "-p", "int4", "-e", "cpu"], check=True)
    from rrt_edge.exporters.shapes import random_bundle

    for rank in (0, 64):
        bundle = folder / shape / f"bundle-{rank}"
        if not (bundle / "manifest.json").is_file():
            random_bundle(shape, bundle, loops=LOOPS[shape], rank=rank)


def python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def environment(folder: Path, packages: list[str], peer: str) -> None:
    """A virtual environment with a peer, its native code built for this machine and optimised."""
    if (folder / "ready").is_file():
        return
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    flags = {"CMAKE_ARGS": "-DCMAKE_BUILD_TYPE=Release -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF"}
    pip = [str(python(folder)), "-m", "pip", "install", "--quiet"]
    subprocess.run([*pip, *packages], check=True)
    subprocess.run([*pip, "--no-binary", "llama-cpp-python", peer], check=True, env={**os.environ, **flags})
    (folder / "ready").touch()


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


def child(environment_folder: Path | None, function: str, *arguments: str) -> Any:
    """Run a function of this file in an environment; returns what it returned."""
    interpreter = str(python(environment_folder)) if environment_folder else sys.executable
    command = [interpreter, str(HERE), "child", function, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def write_gguf(checkpoint: str, out: str) -> None:
    """The checkpoint as GGUF, without a vocabulary, quantised to Q4_0 by llama.cpp."""
    import ctypes

    import gguf
    import llama_cpp
    import ml_dtypes  # noqa: F401  numpy's bfloat16
    import numpy as np
    from safetensors.numpy import load_file

    config = json.loads((Path(checkpoint) / "config.json").read_text())
    tensors = load_file(Path(checkpoint) / "model.safetensors")
    half = Path(out).with_suffix(".f16")
    writer = gguf.GGUFWriter(str(half), "llama")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(hidden // heads)
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    names = {
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
    outer["lm_head.weight"] = "output.weight"
    for name, tensor in tensors.items():
        target = outer.get(name)
        if target is None:
            _, _, layer, part = name.removesuffix(".weight").split(".", 3)
            target = f"blk.{layer}.{names[part]}.weight"
        writer.add_tensor(target, tensor.astype(np.float32 if tensor.ndim == 1 else np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    status = llama_cpp.llama_model_quantize(str(half).encode(), out.encode(), ctypes.byref(parameters))
    half.unlink()
    if status:
        raise SystemExit(f"llama.cpp could not quantise {half}")


def figures(prefill: float, decode: float, path: Path) -> dict[str, float]:
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    size = sum(file.stat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return {
        "prefill": PROMPT / prefill,
        "decode": (NEW - 1) / decode,
        "peak_mib": int(peak.split()[1]) / 1024,
        "file_mb": size / 1e6,
    }


def prompt_ids(vocabulary: int) -> list[int]:
    import numpy as np

    ids: list[int] = np.random.default_rng(0).integers(3, vocabulary, PROMPT).tolist()
    return ids


def run_llama_cpp(path: str, threads: str, vocabulary: str) -> dict[str, float]:
    import llama_cpp
    import numpy as np

    silence = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silence, None)
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = PROMPT + NEW, PROMPT, PROMPT
    parameters.n_threads = parameters.n_threads_batch = int(threads)
    context = llama_cpp.llama_init_from_model(model, parameters)

    def feed(ids: list[int]) -> int:
        array = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama.cpp failed")
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), shape=(int(vocabulary),))
        return int(logits.argmax())

    return figures(*timed(feed, int(vocabulary)), Path(path))


def run_genai(path: str, threads: str, vocabulary: str) -> dict[str, float]:
    import onnxruntime_genai

    config = onnxruntime_genai.Config(path)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": int(threads)}}}}))
    model = onnxruntime_genai.Model(config)
    parameters = onnxruntime_genai.GeneratorParams(model)
    parameters.set_search_options(max_length=PROMPT + NEW, min_length=PROMPT + NEW, do_sample=False)
    generator = onnxruntime_genai.Generator(model, parameters)
    started = time.perf_counter()
    generator.append_tokens(prompt_ids(int(vocabulary)))
    generator.generate_next_token()
    middle = time.perf_counter()
    for _ in range(NEW - 1):
        generator.generate_next_token()
    return figures(middle - started, time.perf_counter() - middle, Path(path))


def run_ours(path: str, threads: str, vocabulary: str, depth: str) -> dict[str, float]:
    from rrt_edge.runtime import Model
    from rrt_edge.runtime.decoding.decoder import Decoder
    from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
    from rrt_edge.runtime.decoding.sampler import Sampler
    from rrt_edge.runtime.decoding.sampling import Sampling
    from rrt_edge.runtime.loaded import insides

    with Model.load(path, context=PROMPT + NEW, threads=int(threads)) as model:
        decoder, sampler = Decoder(insides(model).runner), Sampler(Sampling())
        policy = ExitPolicy(depth=int(depth)) if int(depth) else ExitPolicy()

        def feed(ids: list[int]) -> int:
            decoder.prefill(ids[:-1], policy)
            return sampler.pick(decoder.step(ids[-1], policy).logits, ids)

        return figures(*timed(feed, int(vocabulary)), Path(path))


def run_drafts(path: str, threads: str, vocabulary: str, share: str) -> dict[str, float]:
    """Full depth as it runs by itself, or with this share of all drafts standing, which is drawn."""
    from rrt_edge.runtime import Model, Sampling
    from rrt_edge.runtime.loaded import insides
    from rrt_edge.runtime.measuring.simulated import SimulatedDrafting

    with Model.load(path, context=PROMPT + NEW, threads=int(threads)) as model:
        loaded = insides(model)
        loaded.manifest = dataclasses.replace(loaded.manifest, eos_token_ids=())  # so that the reply has its length
        if share:
            loaded.drafting = SimulatedDrafting(float(share), 0)
        stats = model.generate(prompt_ids(int(vocabulary)), Sampling(max_tokens=NEW), "full").stats
        decode = (NEW - 1) / stats.decode_tokens_per_second
        measured = figures(stats.time_to_first_token_s, decode, Path(path))
        return {**measured, "steps": stats.steps_per_token, "stood": stats.accepted / max(stats.drafted, 1)}


def timed(feed: Any, vocabulary: int) -> tuple[float, float]:
    """Seconds of the prompt with the first token, and of the others."""
    started = time.perf_counter()
    token = feed(prompt_ids(vocabulary))
    middle = time.perf_counter()
    for _ in range(NEW - 1):
        token = feed([token])
    return middle - started, time.perf_counter() - middle


def busy_share() -> float:
    """The share of all processors' time that was used in the last second."""

    def read() -> tuple[int, int]:
        numbers = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(numbers), numbers[3] + numbers[4]

    before = read()
    time.sleep(1)
    total, idle = (after - first for after, first in zip(read(), before, strict=True))
    return 1 - idle / total


def run(folder: Path, shape: str, threads: int, repeats: int) -> None:
    busy = busy_share()
    if busy > MOST_BUSY:
        raise SystemExit(f"the machine is busy ({busy:.0%}): nothing is timed; stop what else runs and start again")
    home, vocabulary = folder / shape, {"tinyllama": "32000", "smollm": "49152"}[shape]
    count = str(threads)
    contenders: dict[str, tuple[Path | None, tuple[str, ...]]] = {
        "llama.cpp Q4_0": (folder / "llama-cpp", ("run_llama_cpp", str(home / "model-q4_0.gguf"), count, vocabulary)),
        "onnxruntime-genai int4": (folder / "genai", ("run_genai", str(home / "genai"), count, vocabulary)),
    }
    for rank in (0, 64):
        bundle = str(home / f"bundle-{rank}")
        contenders[f"ours, rank {rank}, full without drafts"] = (None, ("run_ours", bundle, count, vocabulary, "0"))
        contenders[f"ours, rank {rank}, full as it runs"] = (None, ("run_drafts", bundle, count, vocabulary, ""))
        for share in ("0.8", "1"):
            name = f"ours, rank {rank}, full, {float(share):.0%} of drafts stand (simulated)"
            contenders[name] = (None, ("run_drafts", bundle, count, vocabulary, share))
        contenders[f"ours, rank {rank}, depth=1"] = (None, ("run_ours", bundle, count, vocabulary, "1"))
    found: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, (environment_folder, call) in contenders.items():
            found[name].append(child(environment_folder, *call))
    medians = {
        name: {key: statistics.median(one[key] for one in several) for key in several[0]}
        for name, several in found.items()
    }
    llama, genai = (medians[name] for name in list(contenders)[:2])
    print(f"{shape}, {threads} threads, prompt {PROMPT}, {NEW} new tokens, medians of {repeats} in turn\n")
    columns = [
        "decode tok/s",
        "to llama.cpp",
        "to genai",
        "prefill tok/s",
        "to llama.cpp",
        "to genai",
        "peak MiB",
        "MB",
    ]
    print(f"| | {' | '.join([*columns, 'steps a token', 'drafts that stood'])} |")
    print("|---" * (len(columns) + 3) + "|")
    for name, one in medians.items():
        cells = [
            f"{one['decode']:.1f}", f"{one['decode'] / llama['decode']:.2f}", f"{one['decode'] / genai['decode']:.2f}",
            f"{one['prefill']:.0f}", f"{one['prefill'] / llama['prefill']:.2f}",
            f"{one['prefill'] / genai['prefill']:.2f}", f"{one['peak_mib']:.0f}", f"{one['file_mb']:.0f}",
            *((f"{one['steps']:.2f}", f"{one['stood']:.0%}") if "steps" in one else ("-", "-")),
        ]  # fmt: skip
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(globals()[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run"])
    parser.add_argument("--shape", default="tinyllama", choices=sorted(LOOPS))
    parser.add_argument("--folder", type=Path, default=Path("build/peers"))
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.what == "prepare":
        prepare(arguments.folder, arguments.shape)
    else:
        run(arguments.folder, arguments.shape, arguments.threads, arguments.repeats)


if __name__ == "__main__":
    main()
