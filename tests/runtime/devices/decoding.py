"""A bundle driven block by block on a device, and its whole decode beside the same graphs in float32 on the CPU.

As a program, in an environment that holds the runtime alone: `python decoding.py BUNDLE DEVICE PRECISION PROFILE`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rrt_edge.runtime import Model, Sampling
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.loaded import Loaded
from rrt_edge.runtime.running.devices.device import OpenDevice
from rrt_edge.runtime.running.devices.runner import DeviceGraph
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.runner import Call

QUESTIONS = [
    "What does os.path.join do?",
    "In one line, what is collections.Counter?",
    "Remind me, what does heapq.heappush do?",
    "What is functools.reduce for?",
    "What does shutil.copyfile do?",
    "What does json.dumps do?",
    "Explain textwrap.dedent.",
    "What does math.isclose do?",
    "What is itertools.chain for?",
    "In one line, what is pathlib.Path?",
    "What does re.sub do?",
    "What does statistics.median do?",
]
THRESHOLDS = (0.5, 0.9, 0.99)
NEAR = 0.02  # how near a threshold a gate may be for an exit to differ
HEAVY = {"MatMulNBits", "MatMul", "GroupQueryAttention", "Gemm", "FusedMatMul"}


def on_device(
    bundle: Path,
    device: str = "cpu",
    *,
    precision: str = "float32",
    context: int | None = None,
    budget: int | None = None,
    profile: Path | None = None,
) -> Model:
    """A bundle driven block by block; also on the CPU, where `Model.load` would take the loop graph."""
    manifest = Manifest.read(bundle)
    context = context or min(512, manifest.architecture.context_length)
    opened = OpenDevice(device)
    runner = DeviceGraph(
        bundle, manifest.architecture, opened,
        context=context, budget=KVBudget(budget), precision=precision, profile=profile,
    )  # fmt: skip
    loaded = Loaded(manifest, runner, read_tokenizer(bundle), ChatTemplate.from_folder(bundle), context, device)
    return Model._of(loaded, str(bundle))


def forced(model: Model, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """A text fed token by token, each through every depth: logits [depths, S, V], gates [depths, S]."""
    runner = model._loaded.runner
    binding, cache = runner.bind(), runner.new_cache()
    logits: list[list[np.ndarray]] = [[] for _ in range(model.loops)]
    gates: list[list[float]] = [[] for _ in range(model.loops)]
    for position, token in enumerate(ids):
        rows: object = np.array([token])
        for depth in range(1, model.loops + 1):
            done = runner.run(binding, cache, Call(rows, position, depth, depth, logit_rows=[0]))  # type: ignore[arg-type]
            rows = done.hidden
            logits[depth - 1].append(done.logits[0])
            gates[depth - 1].append(float(done.gate[0]))
    return np.array(logits), np.array(gates)


@dataclass(frozen=True)
class Decoded:
    """By depth: the largest logit error, relative to the largest logit; positions with the same likeliest token; exits
    that differ though the gate is not near the threshold."""

    positions: int
    errors: list[float]
    agree: list[int]
    exits: list[int]


def compare(bundle: Path, device: str, precision: str) -> Decoded:
    """Questions and their answers, token by token through every depth, on a device and on the CPU."""
    with on_device(bundle, device, precision=precision) as ours, on_device(bundle) as theirs:
        positions, loops = 0, ours.loops
        errors, agree, exits = [0.0] * loops, [0] * loops, [0] * loops
        for question in QUESTIONS:
            asked = theirs.encode_chat([{"role": "user", "content": question}])
            reply = theirs.generate(asked, Sampling(max_tokens=40))
            ids = [*asked, *(token.id for token in reply.tokens)]
            positions += len(ids)
            (found, found_gates), (expected, expected_gates) = forced(ours, ids), forced(theirs, ids)
            for depth in range(loops):
                error = np.abs(found[depth] - expected[depth]).max() / np.abs(expected[depth]).max()
                errors[depth] = max(errors[depth], float(error))
                agree[depth] += int((found[depth].argmax(-1) == expected[depth].argmax(-1)).sum())
                for threshold in THRESHOLDS:
                    sure = np.abs(expected_gates[depth] - threshold) > NEAR
                    leaves = [gates[depth] >= threshold for gates in (found_gates, expected_gates)]
                    exits[depth] += int((leaves[0] != leaves[1])[sure].sum())
    return Decoded(positions, errors, agree, exits)


def profiled(runner: DeviceGraph) -> dict[str, Counter[tuple[str, str]]]:
    """How often each operator ran on each provider, by form; what a provider compiled counts as one operator."""
    ran = {}
    for form, path in runner.end_profiling().items():
        events = [event for event in json.loads(path.read_text("utf-8")) if event.get("cat") == "Node"]
        nodes = [event["args"] for event in events if "provider" in event.get("args", {})]
        ran[form] = Counter((node["op_name"].partition("_")[0], node["provider"]) for node in nodes)
    return ran


def main(bundle: str, device: str, precision: str, profile: str) -> None:
    told = asdict(compare(Path(bundle), device, precision))
    with on_device(Path(bundle), device, precision=precision, profile=Path(profile)) as model:
        model.generate("def", Sampling(max_tokens=3))
        assert isinstance(model._loaded.runner, DeviceGraph)
        told["ran"] = [[*key, times] for key, times in profiled(model._loaded.runner)["block"].items()]
    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("rrt_edge").addHandler(handler)
    with Model.load(Path(bundle), device=device) as model:
        generation = model.chat([{"role": "user", "content": QUESTIONS[0]}], Sampling(max_tokens=30))
        told["text"] = "".join(token.text for token in generation)
        told["device"], told["warnings"] = model.device, warnings
    print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
