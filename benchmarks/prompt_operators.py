"""Where a prompt's time goes: tokens/s by rows a call, then each operator's share by onnxruntime's own profile.

    python benchmarks/prompt_operators.py BUNDLE [BUNDLE ..] [--prompt 256] [--threads 2] [--repeats 7]

The bundles take turns; medians over the repeats. Products are told apart by their inner and outer size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import onnxruntime

from rrt_edge.runtime import ExitPolicy, Model
from rrt_edge.runtime.decoding import prompt_chunks
from rrt_edge.runtime.decoding.decoder import Decoder
from rrt_edge.runtime.loaded import insides

CHUNKS = (64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    ids = list(range(5, 5 + arguments.prompt))
    models = {bundle: Model.load(bundle, threads=arguments.threads) for bundle in arguments.bundles}
    seconds: dict[tuple[str, int], list[float]] = {}
    for repeat in range(arguments.repeats + 1):
        for bundle, model in models.items():
            for chunk in CHUNKS:
                prompt_chunks.CHUNK = chunk
                started = time.perf_counter()
                Decoder(insides(model).runner).prefill(ids, ExitPolicy())
                if repeat:  # the first is to warm up
                    seconds.setdefault((bundle, chunk), []).append(time.perf_counter() - started)
    for (bundle, chunk), times in seconds.items():
        print(f"{bundle}, {chunk:3} rows a call: {len(ids) / statistics.median(times):6.1f} tok/s")
    models.clear()
    prompt_chunks.CHUNK = 128
    for bundle in arguments.bundles:
        print_shares(bundle, profile(bundle, ids, arguments.threads))


def profile(bundle: str, ids: list[int], threads: int) -> list[dict[str, Any]]:
    """Events of one prompt."""
    plain = onnxruntime.InferenceSession
    with tempfile.TemporaryDirectory() as folder:

        def profiled(path: str, options: onnxruntime.SessionOptions, **given: Any) -> onnxruntime.InferenceSession:
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
            return plain(path, options, **given)

        onnxruntime.InferenceSession = profiled
        with Model.load(bundle, threads=threads) as model:
            onnxruntime.InferenceSession = plain
            Decoder(insides(model).runner).prefill(ids, ExitPolicy())
            events: list[dict[str, Any]] = json.loads(Path(insides(model).runner.session.end_profiling()).read_text())
    return events


def print_shares(bundle: str, events: list[dict[str, Any]]) -> None:
    totals: Counter[str] = Counter()
    for event in events:
        if not event["name"].endswith("_kernel_time") or event["args"]["op_name"] in ("Loop", "If"):
            continue
        name, facts = event["args"]["op_name"], event["args"]
        if name == "MatMulNBits":
            inner = next(iter(facts["input_type_shape"][0].values()))[-1]
            outer = next(iter(facts["output_type_shape"][0].values()))[-1]
            name = f"MatMulNBits {inner} -> {outer}"
        totals[name] += event["dur"]
    whole = sum(totals.values())
    print(f"\n{bundle}: {whole / 1000:.0f} ms")
    for name, duration in totals.most_common(14):
        print(f"  {name:36} {duration / 1000:7.1f} ms  {duration / whole:6.1%}")


if __name__ == "__main__":
    main()
