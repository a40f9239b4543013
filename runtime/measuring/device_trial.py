"""A trial of one device, as a process: `python -m rrt_edge.runtime.measuring.device_trial DEVICE [BUNDLE]`.

Prints one JSON object: the `seconds` of a small sum or, with a bundle, of a short prompt and reply at full depth; or
the `problem`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.running.devices.device import OpenDevice
from rrt_edge.runtime.running.opening import open_runner

SUM = bytes.fromhex(  # an ONNX model of y = x + x, two numbers
    "08083a350a0e0a01780a017812017922034164641201675a0f0a0178120a0a08"
    "080112040a020802620f0a0179120a0a08080112040a02080242040a00100d"
)
PROMPT, STEPS, REPLY = 64, 16, 64  # tokens: a reply's time is that of some steps, scaled


def trial(bundle: Path, device: str) -> float:
    """Seconds of a prompt of 64 tokens and a reply of as many; fewer where the context holds fewer.

    Raises:
        RRTEdgeError: the device cannot run the bundle.
    """
    manifest = Manifest.read(bundle)
    shape = manifest.architecture
    prompt, steps = min(PROMPT, shape.context_length // 2), min(STEPS, shape.context_length // 4)
    context = min(shape.context_length, 2 * (PROMPT + STEPS))
    decoder = Decoder(open_runner(bundle, manifest, device, context))
    ids = [token % shape.vocabulary for token in range(prompt)]
    full = ExitPolicy()
    prompt_seconds = reply_seconds = 0.0
    for _ in range(2):  # the first time is for compiling what the device runs
        decoder.rewind(0)
        started = time.perf_counter()
        decoder.prefill(ids[:-1], full)
        decoder.step(ids[-1], full)
        prompted = time.perf_counter()
        for _ in range(steps):
            decoder.step(0, full)
        prompt_seconds, reply_seconds = prompted - started, time.perf_counter() - prompted
    return prompt_seconds + reply_seconds * REPLY / max(1, steps)


def add(device: str) -> float:
    """Seconds of a sum, its session included.

    Raises:
        RRTEdgeError: the device cannot even add.
    """
    started, opened, two = time.perf_counter(), OpenDevice(device), np.array([1, 2], np.float32)
    session = opened.session(SUM, Path())
    total = opened.call(session, {"x": two})["y"]
    if not np.array_equal(total, two + two):
        raise RRTEdgeError(f"device {device}: says that [1, 2] + [1, 2] is {total.tolist()}")
    return time.perf_counter() - started


def main(device: str, bundle: str | None = None) -> None:
    try:
        print(json.dumps({"seconds": add(device) if bundle is None else trial(Path(bundle), device)}))
    except RRTEdgeError as error:
        print(json.dumps({"problem": str(error)}))


if __name__ == "__main__":
    main(*sys.argv[1:])
