"""How many threads compute by default, and how they wait: what is set, as seen by the libraries themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rrt_edge.runtime.system.machine import default_threads, physical_cores
from rrt_edge.runtime.system.onnxruntime import SPIN_MICROSECONDS, session_options
from rrt_edge.runtime.system.openmp import WAIT_POLICY

SPIN = "session.intra_op.spin_duration_us"
ON_ONE_CORE = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
THREADS_OF_A_SESSION = """
import os, sys, threading
from pathlib import Path
from rrt_edge.runtime import Model
tasks = Path("/proc/self/task")
before = set(os.listdir(tasks))
with Model.load(sys.argv[1], device="cpu"):
    # Python's own are timers that are just ending, and are still listed for milliseconds; those of the pool stay.
    for thread in set(threading.enumerate()) - {threading.main_thread()}:
        thread.join()
    print(1 + min(len(set(os.listdir(tasks)) - before) for _ in range(20_000)))
"""


def run(code: str, *arguments: object, **environment: str) -> str:
    """What a process prints, without the variables of OpenMP in its environment."""
    cleared = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, env={**cleared, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    return done.stdout


def machine(folder: Path, siblings: dict[int, str]) -> Path:
    for cpu, text in siblings.items():
        place = folder / f"cpu{cpu}" / "topology"
        place.mkdir(parents=True)
        (place / "thread_siblings_list").write_text(f"{text}\n")
    return folder


@pytest.mark.parametrize(
    ("siblings", "usable", "cores"),
    [
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, (0, 1, 2, 3), 2),
        ({0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}, (0, 1), 1),
        ({0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"}, (0, 3), 2),
        ({0: "0", 1: "1"}, (1,), 1),
        ({}, (0, 1, 5), 3),
    ],
)
def test_physical_cores_among_the_usable_ones(
    tmp_path: Path, siblings: dict[int, str], usable: tuple[int, ...], cores: int
) -> None:
    assert physical_cores(machine(tmp_path, siblings), usable) == cores


@pytest.mark.parametrize(("quota", "threads"), [("max", 4), ("800000", 4), ("250000", 3), ("200000", 2), ("50000", 1)])
def test_a_quota_is_rounded_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, threads: int) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    monkeypatch.setattr("rrt_edge.runtime.system.machine.CGROUP", tmp_path)
    monkeypatch.setattr("rrt_edge.runtime.system.machine._physical_cores", lambda: 4)
    assert default_threads() == threads and session_options().intra_op_num_threads == threads


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="cores cannot be bound")
def test_a_bound_process_computes_on_its_cores(bundle: Path) -> None:
    count = "from rrt_edge.runtime.system.machine import default_threads; print(default_threads())"
    assert int(run(f"{ON_ONE_CORE}\n{count}")) == 1
    assert int(run(f"{ON_ONE_CORE}\n{THREADS_OF_A_SESSION}", bundle)) == 1
    assert int(run(THREADS_OF_A_SESSION, bundle)) == default_threads()


def test_sessions_compute_with_what_is_named_and_wait_as_the_default_says() -> None:
    options = session_options(7)
    assert options.intra_op_num_threads == 7
    assert options.get_session_config_entry(SPIN) == str(SPIN_MICROSECONDS)


def test_torchs_threads_sleep_unless_the_environment_says_otherwise() -> None:
    code = f"import rrt_edge, os; print(os.environ[{WAIT_POLICY!r}])"
    assert run(code).strip() == "passive"
    assert run(code, OMP_WAIT_POLICY="active").strip() == "active"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torch has another OpenMP")
def test_torchs_openmp_goes_by_it() -> None:
    """libgomp prints, when it is loaded, how many turns its threads loop."""
    pytest.importorskip("torch")
    shown = run("import rrt_edge, torch", OMP_DISPLAY_ENV="verbose")
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in shown and "GOMP_SPINCOUNT = '300'" in shown
    shown = run("import rrt_edge, torch", OMP_DISPLAY_ENV="verbose", OMP_WAIT_POLICY="active")
    assert "GOMP_SPINCOUNT = '300'" not in shown
