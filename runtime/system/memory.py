"""The memory that this process has taken of the machine's."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most memory this process has held since it started, in bytes; 0 where the system does not say."""
    if sys.platform == "linux":  # not `ru_maxrss`: there a process inherits that of the one which started it
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def return_unused() -> None:
    """Let the system have what was freed; glibc keeps it for the process until it is told."""
    if sys.platform == "linux":
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)
