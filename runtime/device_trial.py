"""A trial of one device with one bundle, as a process: `python -m rrt_edge.runtime.device_trial BUNDLE DEVICE`.

Prints one JSON object: the `seconds` of a short prompt and reply at full depth, or the `problem`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from rrt_edge.runtime.decoder import Decoder
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.manifest import Manifest
from rrt_edge.runtime.policy import ExitPolicy
from rrt_edge.runtime.runners import open_runner

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


if __name__ == "__main__":
    try:
        print(json.dumps({"seconds": trial(Path(sys.argv[1]), sys.argv[2])}))
    except RRTEdgeError as error:
        print(json.dumps({"problem": str(error)}))
