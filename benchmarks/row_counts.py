"""Which products give a row other bits when it is computed among others, and what it would cost to prevent it.

    python benchmarks/row_counts.py [--threads 1] [--repeats 40]

MatMulNBits of random weights, 4 and 8 bits, with int8 activations (accuracy_level 4) and float ones (0 and 1): the
largest difference between 16 rows computed together and one by one, or two by two; the processor time of one row to
level 4's, and of two rows to one's, which padding a single row to two would cost. Minima of repeats, taken in turn.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from rrt_edge.exporters.builder import FLOAT, MICROSOFT, value
from rrt_edge.quantisation import blocks

Float = NDArray[np.float32]
SHAPES = ((2048, 5632), (2048, 2048), (576, 1536), (256, 768))  # TinyLlama's, SmolLM2's, the demo's
LEVELS = (4, 0, 1)
ROWS, RUNS = 16, 5


def product(inputs: int, outputs: int, bits: int, level: int, threads: int) -> onnxruntime.InferenceSession:
    rng = np.random.default_rng(0)
    quantized = blocks.quantize(rng.normal(0, 0.02, (outputs, inputs)).astype(np.float32), bits)
    sizes = {"K": inputs, "N": outputs, "bits": bits, "block_size": blocks.BLOCK, "accuracy_level": level}
    node = helper.make_node("MatMulNBits", ["x", "w", "s"], ["y"], domain=MICROSOFT, **sizes)
    weights = [numpy_helper.from_array(quantized.packed, "w"), numpy_helper.from_array(quantized.scales, "s")]
    typed = [value("x", FLOAT, "rows", inputs)], [value("y", FLOAT, "rows", outputs)]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    graph = helper.make_graph([node], "product", *typed, weights)
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def by(session: onnxruntime.InferenceSession, rows: Float, count: int) -> Float:
    """The product of so many rows at a time."""
    parts = [session.run(None, {"x": rows[at : at + count]})[0] for at in range(0, len(rows), count)]
    return np.concatenate(parts)


def seconds(session: onnxruntime.InferenceSession, rows: Float) -> float:
    started = time.process_time()
    for _ in range(RUNS):
        session.run(None, {"x": rows})
    return (time.process_time() - started) / RUNS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=40)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    for inputs, outputs in SHAPES:
        rows = rng.normal(size=(ROWS, inputs)).astype(np.float32)
        for bits in (4, 8):
            sessions = {level: product(inputs, outputs, bits, level, arguments.threads) for level in LEVELS}
            times: dict[tuple[int, int], list[float]] = {}
            for _ in range(arguments.repeats):
                for level, session in sessions.items():
                    for count in (1, 2):
                        times.setdefault((level, count), []).append(seconds(session, rows[:count]))
            best = {key: min(taken) for key, taken in times.items()}
            for level, session in sessions.items():
                whole = by(session, rows, ROWS)
                apart = [float(np.abs(by(session, rows, count) - whole).max()) for count in (1, 2)]
                print(
                    f"{inputs} x {outputs}, {bits} bits, level {level}: one by one {apart[0]:.1e}, two by two "
                    f"{apart[1]:.1e} apart; one row costs {best[level, 1] / best[4, 1]:.2f} of level 4's, two rows "
                    f"{best[level, 2] / best[level, 1]:.2f} of one"
                )


if __name__ == "__main__":
    main()
