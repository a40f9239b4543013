"""Memory of a bundle after loading and after 256 + 128 tokens, with and without the weight cache. Linux.

    python benchmarks/memory.py BUNDLE [CACHE]      CACHE: for the packed weights, build/weight-cache by default

Peak is VmHWM. Private is what no other process can share: the heap (anonymous) and the pages of files that this process
alone maps, which the system may drop. The ratio is to the bundle's files and the keys and values of 384 tokens.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

PROMPT, NEW = 256, 128


def figures() -> dict[str, float]:
    """MiB of this process."""
    text = Path("/proc/self/status").read_text() + Path("/proc/self/smaps_rollup").read_text()

    def read(name: str) -> float:
        return sum(int(number) for number in re.findall(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)) / 1024

    return {
        "peak": read("VmHWM"),
        "resident": read("VmRSS"),
        "private": read("Private_(?:Clean|Dirty)"),
        "heap": read("RssAnon"),
    }


def measure(bundle: str, cache: str) -> dict[str, object]:
    import numpy as np

    from rrt_edge.runtime import Model, Sampling

    started = time.perf_counter()
    with Model.load(bundle, context=PROMPT + NEW, weight_cache=cache or None) as model:
        seconds, loaded = time.perf_counter() - started, figures()
        prompt = np.random.default_rng(0).integers(3, model.manifest.architecture.vocabulary, PROMPT).tolist()
        model.generate(prompt, Sampling(max_tokens=NEW - 1))
        kv = (PROMPT + NEW) * model.manifest.architecture.kv_bytes_per_token
        files = sum(path.stat().st_size for path in Path(bundle).iterdir())
        return {"seconds": seconds, "loaded": loaded, "generated": figures(), "floor": (files + kv) / 2**20}


def main() -> None:
    if sys.argv[1] == "child":
        print(json.dumps(measure(*sys.argv[2:])))
        return
    bundle, cache = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "build/weight-cache"
    runs = {"packed at load": "", "weight cache, first load": cache, "weight cache": cache}
    for name, where in runs.items():
        command = [sys.executable, "-P", __file__, "child", bundle, where]
        found = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        print(f"{name}: loaded in {found['seconds']:.2f} s; bundle and keys and values {found['floor']:.0f} MiB")
        for moment in ("loaded", "generated"):
            shown = ", ".join(f"{key} {value:.0f}" for key, value in found[moment].items())
            ratios = ", ".join(f"{key} {found[moment][key] / found['floor']:.2f}" for key in ("private", "heap"))
            print(f"    {moment}: MiB {shown}; to the floor: {ratios}")
    size = sum(path.stat().st_size for path in Path(cache).rglob("*") if path.is_file())
    print(f"the cache holds {size / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
