"""One experiment: a block in 2 bits with adapters in 4. The time it gains, and the quality that training saves.

    python benchmarks/two_bits.py speed
    python benchmarks/two_bits.py quality [--rounds 5] [--folder build/two-bits]

`speed`: products of one and two rows with 22 matrices of TinyLlama's feed-forward shape, up and down in turn, by bits
and block, on the CPU; they are so many that they come from memory. `quality`: the docstrings demo with its block's
weights at 2 bits and its adapters, embedding and head at 4, rounded as it is and after a training with that rounding in
it, beside 4 bits for all; scored on held-out questions. Models that were trained stay in the folder and are not trained
again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper
from peers import last_line
from transformers import AutoModelForCausalLM, AutoTokenizer

from rrt_edge.model.modeling import RecursiveForCausalLM
from rrt_edge.model.projections import projections, tensors_of
from rrt_edge.model.text import encode_chat
from rrt_edge.quantisation.blocks import BLOCK, Quantized, rounded
from rrt_edge.quantisation.wide import Adapted, Float
from rrt_edge.training import TrainOptions, train, trainer
from rrt_edge.training.evaluation import score_checkpoint
from rrt_edge.training.rounding import Rounding

HERE = Path(__file__).resolve().parent
DEMO = HERE.parent / "samples" / "pydoc"
HIDDEN, INTERMEDIATE, LAYERS = 2048, 5632, 11
FORMS = ((4, 32), (4, 128), (2, 32), (2, 64), (2, 128))  # bits, block
REPEATS, RUNS = 3, 30
ADAPTER_BITS = 4


class FewBits(Rounding):
    """Weights of the block's linears in 2 bits, the adapters in 4 beside them, not in the same matrix."""

    weight_bits = 2

    def _layer(self, layer: str) -> Iterator[tuple[str, torch.Tensor]]:
        text, made = self._model.config.text_config, {}
        for name, own in projections(self, text, layer, self.matrix, self._residual_scale).items():
            assert not isinstance(own.weight, Quantized)
            weight = rounded(own.weight, self.weight_bits, BLOCK)
            made[name] = Adapted(weight, own.bias, _adapters(own.a), _adapters(own.b))
        yield from tensors_of(made, text, layer, self._residual_scale)


def _adapters(stacked: Float | None) -> Float | None:
    """The adapters of all depths, each rounded."""
    return None if stacked is None else np.stack([rounded(matrix, ADAPTER_BITS) for matrix in stacked])


def quality(folder: Path, rounds: int) -> None:
    if not (folder / "train.jsonl").is_file():
        recipe = [sys.executable, DEMO / "recipe.py", folder, "--rounds", str(rounds), "--turns", "6"]
        subprocess.run(recipe, check=True, stdout=subprocess.DEVNULL)
    lines = (folder / "heldout.jsonl").read_text("utf-8").splitlines()
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "recursive")
    questions = [encode_chat(tokenizer, json.loads(line)["messages"]) for line in lines]
    options = TrainOptions(stages=("early-exit",), exit_lr=4e-4, bits=4, eight_bit=(), save_steps=100_000)
    print("| the demo's block | | perplexity, last loop | first loop | exactly right, last loop | first loop |")
    print("|---|---|---|---|---|---|")
    for bits, rounding in ((4, Rounding), (2, FewBits)):
        trained = folder / f"trained-{bits}"
        if not trained.is_dir():
            trainer.Rounding = rounding  # type: ignore[attr-defined]
            train(DEMO / "recursive", trained, data=folder / "train.jsonl", teacher=DEMO / "teacher", options=options)
        for name, source in (("as it is", DEMO / "recursive"), (f"trained {rounds} rounds so", trained)):
            model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
            print(f"| {bits} bits | {name} | {scores(model, rounding, questions)} |", flush=True)


def scores(model: RecursiveForCausalLM, rounding: type[Rounding], questions: list[dict[str, list[int]]]) -> str:
    with rounding(model, 4, BLOCK, ()).applied():
        found = score_checkpoint(model, questions)
    depths = (model.config.loops, 1)
    cells = [f"{found.at_depth(depth).perplexity:.3f}" for depth in depths]
    return " | ".join([*cells, *(f"{found.exact(depth).mean():.1%}" for depth in depths)])


def speed() -> None:
    times: dict[tuple[tuple[int, int], int], list[float]] = {}
    for _ in range(REPEATS):
        for form in FORMS:  # each in a process of its own: threads that wait for work would disturb the others
            timed = last_line([sys.executable, __file__, "products", "--form", *map(str, form)])
            for rows, seconds in enumerate(timed, 1):
                times.setdefault((form, rows), []).append(seconds)
    print("| bits, block | one row, ms | two rows, ms |")
    print("|---|---|---|")
    for form in FORMS:
        one, two = (1000 * median(times[form, rows]) for rows in (1, 2))
        print(f"| {form[0]}, {form[1]} | {one:.2f} | {two:.2f} |")


def products(bits: int, block: int) -> list[float]:
    """Seconds that the layers take for one row and for two."""
    session, medians = layers_of(bits, block), []
    for rows in (1, 2):
        x, times = np.ones((rows, HIDDEN), np.float32), []
        for _ in range(RUNS):
            started = time.perf_counter()
            session.run(None, {"x": x})
            times.append(time.perf_counter() - started)
        medians.append(median(times))
    return medians


def layers_of(bits: int, block: int) -> onnxruntime.InferenceSession:
    """A product up and one down for each of `LAYERS` layers, one behind another."""
    rng, nodes, tensors = np.random.default_rng(0), [], []
    name = "x"
    for index in range(2 * LAYERS):
        inputs, outputs = (HIDDEN, INTERMEDIATE) if index % 2 == 0 else (INTERMEDIATE, HIDDEN)
        packed = rng.integers(0, 256, (outputs, inputs // block, block * bits // 8), np.uint8)
        scales = np.full((outputs, inputs // block), 1e-2, np.float32)
        tensors += [numpy_helper.from_array(packed, f"p{index}"), numpy_helper.from_array(scales, f"s{index}")]
        form = {"K": inputs, "N": outputs, "bits": bits, "block_size": block, "accuracy_level": 4}
        made = f"y{index}"
        nodes.append(
            helper.make_node("MatMulNBits", [name, f"p{index}", f"s{index}"], [made], domain="com.microsoft", **form)
        )
        name = made
    ends = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["rows", HIDDEN]) for each in ("x", name)]
    graph = helper.make_graph(nodes, "products", ends[:1], ends[1:], tensors)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["speed", "quality", "products"])
    parser.add_argument("--form", type=int, nargs=2, metavar=("BITS", "BLOCK"), help="of products alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/two-bits"))
    arguments = parser.parse_args()
    if arguments.part == "speed":
        speed()
    elif arguments.part == "products":
        print(json.dumps(products(*arguments.form)))
    else:
        quality(arguments.folder / f"rounds-{arguments.rounds}", arguments.rounds)


if __name__ == "__main__":
    main()
