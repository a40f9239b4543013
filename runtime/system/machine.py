"""What this machine has that decides how fast a bundle runs: processor features, cores, memory."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

X86 = {  # what the int4 kernels look for, by the flags of /proc/cpuinfo
    "AVX2": {"avx2"},
    "AVX512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "AVX512 VNNI": {"avx512_vnni"},
    "AVX-VNNI": {"avx_vnni"},
}
ARM = {"NEON dotprod": {"asimddp"}, "NEON i8mm": {"i8mm"}}
APPLE = {  # the same by sysctl's names
    "x86": {
        "AVX2": {"hw.optional.avx2_0"},
        "AVX512": {"hw.optional.avx512f", "hw.optional.avx512bw", "hw.optional.avx512dq", "hw.optional.avx512vl"},
        "AVX512 VNNI": {"hw.optional.avx512vnni"},
        "AVX-VNNI": {"hw.optional.avxvnni"},
    },
    "arm": {"NEON dotprod": {"hw.optional.arm.FEAT_DotProd"}, "NEON i8mm": {"hw.optional.arm.FEAT_I8MM"}},
}
CGROUP = Path("/sys/fs/cgroup")
CPUS = Path("/sys/devices/system/cpu")
PCI = Path("/sys/bus/pci/devices")
NVIDIA = 0x10DE  # its PCI vendor id


@dataclass(frozen=True)
class Machine:
    """The facts of a machine; what the system does not say is None.

    `features` says of each that matters for int4 whether the processor has it. `usable_cores`: those this process is
    bound to; `physical_cores`: how many of them do not share their arithmetic with another one; `core_quota`: the
    processor time a container may use, in cores. Memory is within a container's limit.
    """

    platform: str
    processor: str | None
    features: dict[str, bool] | None
    cores: int | None
    usable_cores: int | None
    physical_cores: int | None
    core_quota: float | None
    memory_bytes: int
    available_bytes: int


def this_machine() -> Machine:
    """Ask the system."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    cores = (os.cpu_count(), usable, _physical_cores(), cpu_quota(CGROUP))
    return Machine(platform.platform(), _processor(), _features(), *cores, *memory(CGROUP))


def default_threads() -> int | None:
    """Threads that a session computes with unless it is told otherwise.

    There is one for each physical core that this process may use, and no more than a container's quota has processor
    time for, rounded up. None where the system does not say which cores are physical, as on Windows.
    """
    cores, quota = _physical_cores(), cpu_quota(CGROUP)
    return cores if cores is None or quota is None else min(cores, max(1, math.ceil(quota)))


@cache
def nvidia_gpu() -> tuple[str, int | None]:
    """Name and memory of the first NVIDIA GPU, by its driver; nothing where there is none."""
    lines = _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits").splitlines()
    name, _, size = (lines or [""])[0].rpartition(", ")
    return name, int(size) << 20 if size.strip().isdigit() else None


def gpu_memory_bytes(vendor: int, device: int) -> int | None:
    """The memory of a GPU by its PCI ids; None where the system does not say, or shares its own with it."""
    if vendor == NVIDIA:
        return nvidia_gpu()[1]
    for place in PCI.glob("*/mem_info_vram_total"):
        ids = [_read(place.with_name(name)).strip() for name in ("vendor", "device")]
        size = _read(place).strip()
        if ids == [f"{vendor:#06x}", f"{device:#06x}"] and size.isdigit():
            return int(size)
    return None


def cpuinfo_features(text: str) -> dict[str, bool] | None:
    """The features by what /proc/cpuinfo says; None where it is of another kind of processor."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return _found(X86 if name.strip() == "flags" else ARM, set(value.split()))
    return None


def sysctl_features(text: str) -> dict[str, bool]:
    """The features by what macOS' `sysctl hw.optional` says."""
    pairs = (line.partition(":") for line in text.splitlines())
    have = {name.strip() for name, _, value in pairs if value.strip() == "1"}
    return _found(APPLE["arm" if any(name.startswith("hw.optional.arm") for name in have) else "x86"], have)


def _found(features: Mapping[str, set[str]], have: set[str]) -> dict[str, bool]:
    return {feature: flags <= have for feature, flags in features.items()}


def _features() -> dict[str, bool] | None:
    if sys.platform == "linux":
        return cpuinfo_features(_read(Path("/proc/cpuinfo")))
    if sys.platform == "darwin":
        return sysctl_features(_output("sysctl", "hw.optional"))
    return None


def _processor() -> str | None:
    if sys.platform == "linux":
        named = [line for line in _read(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")]
        if named:
            return named[0].partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string").strip() or None
    return platform.processor() or platform.machine() or None


def _physical_cores() -> int | None:
    """Physical cores among those that this process may use."""
    if sys.platform == "linux":
        return physical_cores(CPUS, os.sched_getaffinity(0))
    cores = _output("sysctl", "-n", "hw.physicalcpu").strip() if sys.platform == "darwin" else ""
    return int(cores) if cores.isdigit() else None


def physical_cores(folder: Path, usable: Collection[int]) -> int:
    """Physical cores behind the usable CPUs by Linux' folder of CPUs; a CPU it does not describe counts as one."""
    siblings = {_read(folder / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in usable}
    return len(siblings)


def cpu_quota(group: Path) -> float | None:
    """Cores that the quota of a control group comes to, in the files of either version of control groups."""
    quota, _, period = _read(group / "cpu.max").partition(" ")
    if not quota:
        quota, period = (_read(group / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdigit() and period.strip().isdigit() else None


def memory(group: Path) -> tuple[int, int]:
    """Bytes of memory in all and available, within the limit of a control group."""
    import psutil

    system = psutil.virtual_memory()
    total, available = int(system.total), int(system.available)
    limit, used = _read(group / "memory.max").strip(), _read(group / "memory.current").strip()
    if limit.isdigit() and used.isdigit():
        return min(total, int(limit)), max(0, min(available, int(limit) - int(used)))
    return total, available


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
