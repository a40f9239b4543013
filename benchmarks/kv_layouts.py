"""Layouts of the cache for a step at mixed depths: the attention of one block, and what the host copies for it.

    python benchmarks/kv_layouts.py [--threads 2] [--repeats 20]

TinyLlama's heads, 11 layers, 2 depths, 8 sequences of 256 to 384 rows, one new row each, half of them at each depth.
Random numbers; the three layouts are checked against each other. They are timed in turn, medians, with one session at a
time: the idle threads of others would take the processor.

- own buffers: a buffer for each sequence and depth, each slot an input of its own, attention unrolled over the slots;
- copied together: the same buffers, copied by the host into one padded batch at each step, one attention for all;
- side by side: a padded batch for each depth that holds every slot, one attention for each depth over all slots.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from rrt_edge.exporters.builder import FLOAT, MICROSOFT, Builder, value

Float = NDArray[np.float32]
LAYERS, DEPTHS, SLOTS, HEADS, GROUP, SIZE = 11, 2, 8, 4, 8, 64
STEP = 64  # rows a buffer grows by
ROUNDS = 5


def attend(graph: Builder, q: str, keys: str, values: str, past_key: str, past_value: str, mask: str) -> str:
    """Grouped attention of queries [B, KV, G, D] over a past and one new row each, as in the exported graph."""
    old = graph.op("FusedMatMul", q, past_key, domain=MICROSOFT, transB=1, alpha=SIZE**-0.5)
    new = graph.op("FusedMatMul", q, keys, domain=MICROSOFT, transB=1, alpha=SIZE**-0.5)
    shares = graph.op("Softmax", graph.op("Add", graph.op("Concat", old, new, axis=-1), mask), axis=-1)
    split = graph.op("Concat", graph.op("Shape", past_key, start=2, end=3), graph.constant([1]), axis=0)
    old, new = graph.ops("Split", 2, shares, split, axis=-1)
    return graph.op("Add", graph.op("MatMul", old, past_value), graph.op("MatMul", new, values))


def model_bytes(emit: Callable[[Builder, list[str]], str], inputs: list[str]) -> bytes:
    graph = Builder()
    graph.add("Identity", [emit(graph, inputs)], ["mixed"])
    typed = [value(name, FLOAT, *[f"{name}_{axis}" for axis in range(4)]) for name in inputs]
    made = helper.make_graph(graph.nodes, "layout", typed, [value("mixed", FLOAT, "b", "h", "g", "d")], graph.constants)
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(MICROSOFT, 1)]
    serialized: bytes = helper.make_model(made, opset_imports=opsets, ir_version=11).SerializeToString()
    return serialized


def unrolled(graph: Builder, names: list[str]) -> str:
    q, keys, values, *rest = names
    ones = graph.constant([1] * SLOTS)
    parts = [graph.ops("Split", SLOTS, name, ones, axis=0) for name in (q, keys, values)]
    mixed = [attend(graph, *(part[slot] for part in parts), *rest[3 * slot : 3 * slot + 3]) for slot in range(SLOTS)]
    return graph.op("Concat", *mixed, axis=0)


def together(graph: Builder, names: list[str]) -> str:
    return attend(graph, *names)


def by_depth(graph: Builder, names: list[str]) -> str:
    q, keys, values, at_depth, *rest = names
    mixed = [attend(graph, q, keys, values, *rest[3 * depth : 3 * depth + 3]) for depth in range(DEPTHS)]
    return graph.op("Where", graph.op("Greater", at_depth, graph.constant(0.0, np.float32)), mixed[1], mixed[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    lengths = np.linspace(256, 384, SLOTS).astype(int)
    rooms = [-(-int(length) // STEP) * STEP for length in lengths]
    depth = np.arange(SLOTS) % DEPTHS
    new = [rng.standard_normal((SLOTS, HEADS, rows, SIZE), np.float32) for rows in (GROUP, 1, 1)]

    # The rows of each sequence, depth and layer: all layouts hold these.
    own = [
        [rng.standard_normal((2, LAYERS, 1, HEADS, room, SIZE), np.float32) for _ in range(DEPTHS)] for room in rooms
    ]
    side = np.zeros((DEPTHS, 2, LAYERS, SLOTS, HEADS, max(rooms), SIZE), np.float32)
    for slot, room in enumerate(rooms):
        for at in range(DEPTHS):
            side[at, :, :, slot, :, :room] = own[slot][at][:, :, 0]
    copied = np.zeros_like(side[0])

    def mask(length: int, room: int) -> Float:
        hidden = np.where(np.arange(room + 1) < length, 0, -np.inf).astype(np.float32)
        hidden[-1] = 0
        return hidden.reshape(1, 1, 1, -1)

    padded = np.concatenate([mask(int(length), max(rooms)) for length in lengths])
    slot_names = [f"{kind}_{slot}" for slot in range(SLOTS) for kind in ("key", "value", "mask")]
    depth_names = [f"{kind}_{at}" for at in range(DEPTHS) for kind in ("key", "value", "mask")]
    base = ["q", "k", "v"]
    graphs = {
        "own buffers": model_bytes(unrolled, base + slot_names),
        "copied together": model_bytes(together, [*base, "key", "value", "mask"]),
        "side by side": model_bytes(by_depth, [*base, "at_depth", *depth_names]),
    }
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads

    def run(session: onnxruntime.InferenceSession, feeds: list[Float]) -> Float:
        binding = session.io_binding()
        for given, array in zip(session.get_inputs(), feeds, strict=True):
            binding.bind_cpu_input(given.name, array)
        binding.bind_output("mixed")
        session.run_with_iobinding(binding)
        mixed: Float = binding.copy_outputs_to_cpu()[0]
        return mixed

    def own_buffers(session: onnxruntime.InferenceSession) -> list[Float]:
        masks = [mask(int(length), room) for length, room in zip(lengths, rooms, strict=True)]
        return [
            run(session, [*new, *(array for slot in range(SLOTS) for array in (
                own[slot][depth[slot]][0, layer], own[slot][depth[slot]][1, layer], masks[slot]))])
            for layer in range(LAYERS)
        ]  # fmt: skip

    def copied_together(session: onnxruntime.InferenceSession) -> list[Float]:
        for slot, room in enumerate(rooms):
            copied[:, :, slot, :, :room] = own[slot][depth[slot]][:, :, 0]
        return [run(session, [*new, copied[0, layer], copied[1, layer], padded]) for layer in range(LAYERS)]

    def side_by_side(session: onnxruntime.InferenceSession) -> list[Float]:
        at_depth = depth.astype(np.float32).reshape(-1, 1, 1, 1)
        return [
            run(
                session,
                [
                    *new,
                    at_depth,
                    *(a for at in range(DEPTHS) for a in (side[at, 0, layer], side[at, 1, layer], padded)),
                ],
            )
            for layer in range(LAYERS)
        ]

    layouts = {"own buffers": own_buffers, "copied together": copied_together, "side by side": side_by_side}
    times: dict[str, list[float]] = {name: [] for name in layouts}
    expected: list[Float] = []
    for _ in range(ROUNDS):
        for name, layout in layouts.items():
            session = onnxruntime.InferenceSession(graphs[name], options, providers=["CPUExecutionProvider"])
            found = layout(session)
            expected = expected or found
            np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=1e-4)
            for _ in range(arguments.repeats):
                started = time.perf_counter()
                layout(session)
                times[name].append(time.perf_counter() - started)
            del session
    reference = statistics.median(times["own buffers"])
    for name, measured in times.items():
        median = statistics.median(measured)
        print(f"{name}: {median * 1e3:.1f} ms a step of {LAYERS} layers, {median / reference:.2f} of own buffers")


if __name__ == "__main__":
    main()
