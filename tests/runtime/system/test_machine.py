"""What is told of the machine, beside what numpy and the C library say, and for machines that are not here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from rrt_edge.runtime.system.machine import cpu_quota, cpuinfo_features, memory, sysctl_features, this_machine

HASWELL = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-4590\nflags\t\t: fpu sse4_2 avx f16c fma avx2 bmi2\n"
SKYLAKE_X = "flags\t\t: fpu avx avx2 avx512f avx512dq avx512cd avx512bw avx512vl\n"
KNIGHTS_LANDING = "flags\t\t: fpu avx avx2 avx512f avx512pf avx512er avx512cd\n"
ALDER_LAKE = "flags\t\t: fpu avx avx2 avx_vnni\n"
RASPBERRY_PI_4 = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd evtstrm crc32 cpuid\n"
GRAVITON_3 = "Features\t: fp asimd fphp asimdhp asimddp sve i8mm bf16\n"
POWER = "processor\t: 0\ncpu\t\t: POWER9\n"
M1 = "hw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 0\nhw.optional.neon: 1\n"
INTEL_MAC = "hw.optional.avx2_0: 1\nhw.optional.avx512f: 0\nhw.optional.x86_64: 1\n"


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="the system is not asked here")
def test_the_processors_features_are_those_numpy_finds() -> None:
    from numpy._core._multiarray_umath import __cpu_features__ as theirs  # type: ignore[attr-defined]

    ours = this_machine().features
    assert ours
    names = {"AVX2": "AVX2", "AVX512": "AVX512_SKX", "AVX512 VNNI": "AVX512VNNI", "NEON dotprod": "ASIMDDP"}
    compared = {name: theirs[names[name]] for name in ours if name in names and names[name] in theirs}
    assert compared and {name: ours[name] for name in compared} == compared


@pytest.mark.parametrize(
    ("text", "has"),
    [
        (HASWELL, {"AVX2"}),
        (SKYLAKE_X, {"AVX2", "AVX512"}),
        (KNIGHTS_LANDING, {"AVX2"}),
        (ALDER_LAKE, {"AVX2", "AVX-VNNI"}),
        (RASPBERRY_PI_4, set()),
        (GRAVITON_3, {"NEON dotprod", "NEON i8mm"}),
    ],
)
def test_features_of_machines_that_are_not_here(text: str, has: set[str]) -> None:
    found = cpuinfo_features(text)
    assert found is not None and {name for name, there in found.items() if there} == has
    assert ("AVX2" in found) == ("flags" in text)


def test_features_of_macs_and_of_processors_nobody_knows() -> None:
    assert sysctl_features(M1) == {"NEON dotprod": True, "NEON i8mm": False}
    assert {name for name, there in sysctl_features(INTEL_MAC).items() if there} == {"AVX2"}
    assert cpuinfo_features(POWER) is None and cpuinfo_features("") is None


@pytest.mark.skipif(sys.platform != "linux", reason="sysconf names these on Linux")
def test_memory_and_cores_are_the_c_librarys() -> None:
    machine = this_machine()
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < machine.available_bytes <= machine.memory_bytes <= total
    assert machine.cores == os.sysconf("SC_NPROCESSORS_ONLN") and machine.usable_cores == len(os.sched_getaffinity(0))


def test_memory_is_within_a_containers_limit(tmp_path: Path) -> None:
    total, available = memory(tmp_path)
    assert 0 < available <= total
    if sys.platform == "linux":
        assert total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for limit, used, expected in (
        ("max", "1000", total),
        (f"{2 * total}", "1000", total),
        ("50000000", "20000000", 50_000_000),
    ):
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text(f"{used}\n")
        assert memory(tmp_path)[0] == expected
    assert memory(tmp_path)[1] == 30_000_000
    (tmp_path / "memory.current").write_text("50000001\n")
    assert memory(tmp_path)[1] == 0


def test_a_containers_quota_in_cores(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path) is None
    for text, cores in (("max 100000\n", None), ("150000 100000\n", 1.5)):
        (tmp_path / "cpu.max").write_text(text)
        assert cpu_quota(tmp_path) == cores


def test_a_quota_in_the_files_of_control_groups_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    for text, cores in (("-1\n", None), ("250000\n", 2.5)):
        (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(text)
        assert cpu_quota(tmp_path) == cores
