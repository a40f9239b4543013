"""A GPU whose memory is full: `python full_device.py BUNDLE`, with `limited_vulkan.c` before the real library.

Prints one JSON object of what happened.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from pathlib import Path

from rrt_edge.runtime import Model, OutOfMemoryError, Sampling
from rrt_edge.runtime.errors import RRTEdgeError
from tests.runtime.devices.decoding import on_device

NO_LIMIT = 2**64 - 1
vulkan = ctypes.CDLL("libvulkan.so.1")
vulkan.memory_used.restype = ctypes.c_uint64
vulkan.limit_memory.argtypes = [ctypes.c_uint64]
SHORT, REPLY = list(range(2, 22)), Sampling(max_tokens=6)


def outcome(model: Model, prompt: list[int]) -> str:
    """The reply's ids, or the error."""
    try:
        return str([token.id for token in model.generate(prompt, REPLY).tokens])
    except RRTEdgeError as error:
        return f"{type(error).__name__}: {error}"


def main(bundle: Path) -> None:
    told: dict[str, object] = {}
    with on_device(bundle, "webgpu", precision="float32", context=60000) as model:  # so that the rest is of bundles
        told["expected"] = outcome(model, SHORT)
    vulkan.limit_memory(vulkan.memory_used() + (1 << 18))
    try:
        on_device(bundle, "webgpu", precision="float32", context=60000)
        told["load"] = "loaded"
    except OutOfMemoryError as error:
        told["load"] = f"OutOfMemoryError: {error}"
    vulkan.limit_memory(NO_LIMIT)
    with on_device(bundle, "webgpu", precision="float32", context=60000) as model:
        told["loaded again"] = outcome(model, SHORT)
        session = model.session()
        session.generate(SHORT, REPLY)
        vulkan.limit_memory(vulkan.memory_used() + (40 << 20))
        cache, errors = model._loaded.runner.new_cache(), []
        for rows in (40000, 50000, 60000):  # as a long conversation grows, without running it
            try:
                for depth in range(1, model.loops + 1):
                    cache.room_for(depth, rows - cache.lengths[depth - 1])
                    cache.add(depth, rows - cache.lengths[depth - 1], cache.lengths[depth - 1])
            except OutOfMemoryError as error:
                errors.append(str(error))
                break
        told["growing"] = errors
        cache.close()
        del cache
        gc.collect()
        told["beside it"] = str([token.id for token in session.generate(SHORT, REPLY).tokens])
        told["afterwards"] = outcome(model, SHORT)
        vulkan.limit_memory(NO_LIMIT)
        told["without a limit"] = outcome(model, SHORT)
    print(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
