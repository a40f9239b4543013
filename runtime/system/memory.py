"""What this process has taken of the machine's memory."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """The most memory this process has held since it started, in bytes; 0 where the system does not say."""
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0
    if sys.platform == "win32":
        return _windows_peak()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS counts bytes


def return_unused() -> None:
    """Let the system have what was freed; glibc keeps it for the process until it is told."""
    if sys.platform == "linux":
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim is not None:
            trim(0)


def _windows_peak() -> int:
    class Counters(ctypes.Structure):
        _fields_ = [("cb", ctypes.c_uint32), ("faults", ctypes.c_uint32), ("peak", ctypes.c_size_t)] + [
            (f"other{index}", ctypes.c_size_t) for index in range(7)
        ]

    counters = Counters()
    counters.cb = ctypes.sizeof(counters)
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined]
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    process = ctypes.c_void_p(kernel.GetCurrentProcess())
    return counters.peak if kernel.K32GetProcessMemoryInfo(process, ctypes.byref(counters), counters.cb) else 0
