"""Commands on an idle machine and beside as many busy processes as there are cores: wall and processor time.

    rrt-edge export samples/pydoc/recursive build/demo/bundle
    python samples/pydoc/recipe.py build/pydoc --rounds 1
    python benchmarks/busy.py build/demo/bundle --source samples/pydoc/recursive --data build/pydoc [--repeats 5]
    rrt-edge bench --shape smollm --random --loops 3 --rank 64 --keep build/smollm
    python benchmarks/busy.py build/smollm            generate and bench alone, as random weights score nothing

A busy process multiplies small matrices with vector instructions on one thread. Idle and busy runs take turns; printed
are medians, the spread of the wall times as (slowest - fastest) / median, and how many times the idle machine's time
the busy one takes. Processor time is user and system time of a command and the processes that it starts. Linux, macOS.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BUSY = "import numpy; m = numpy.ones((128, 128), 'f4')\nprint(flush=True)\nwhile True: m @ m"
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "VECLIB_MAXIMUM_THREADS": "1"}


@dataclass(frozen=True)
class Times:
    """Seconds that a command took by the clock, and of the processors."""

    wall: float
    processor: float


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    """So many processes that compute without end, each running when the body begins."""
    command = [sys.executable, "-c", BUSY]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | ONE_THREAD) for _ in range(count)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def measure(command: list[str]) -> Times:
    """Run a command to its end."""
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with status {process.returncode}")
    return Times(wall, usage.ru_utime + usage.ru_stime)


def commands(bundle: str, source: str | None, data: Path | None) -> dict[str, list[str]]:
    """The command lines to measure, by name."""
    program = str(Path(sys.executable).with_name("rrt-edge"))
    bench = ["--prompt", "128", "--new", "64", "--repeats", "3", "--device", "cpu"]
    generate = ["--min-tokens", "200", "--max-tokens", "200", "--device", "cpu"]
    lines = {
        "generate": ["generate", bundle, "--prompt-ids", "5,6,7,8", *generate],
        "bench": ["bench", bundle, *bench],
    }
    if source is not None:
        lines["verify"] = ["verify", bundle, "--source", source]
    if data is not None:
        lines["eval"] = ["eval", bundle, "--data", str(data / "heldout.jsonl")]
    return {name: [program, *line] for name, line in lines.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--source", help="The bundle's checkpoint: measures verify too.")
    parser.add_argument("--data", type=Path, help="The folder with heldout.jsonl: measures eval too.")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1, help="Busy processes; one for each core.")
    parser.add_argument("--only", help="Comma-separated names of commands.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    lines = commands(arguments.bundle, arguments.source, arguments.data)
    chosen = arguments.only.split(",") if arguments.only else list(lines)
    idle: dict[str, list[Times]] = {name: [] for name in chosen}
    busy: dict[str, list[Times]] = {name: [] for name in chosen}
    for name in chosen:
        measure(lines[name])  # reads the files that the others find in memory
    for _ in range(arguments.repeats):
        for name in chosen:
            idle[name].append(measure(lines[name]))
            with busy_processes(arguments.busy):
                busy[name].append(measure(lines[name]))
    print(f"{platform.machine()}, {os.cpu_count()} cores, {arguments.busy} busy processes, {arguments.repeats} repeats")
    print("| command | wall idle | busy | ratio | processor idle | busy | ratio | spread idle / busy |")
    print("|---|---|---|---|---|---|---|---|")
    for name in chosen:
        print(row(name, idle[name], busy[name]))


def row(name: str, idle: list[Times], busy: list[Times]) -> str:
    """A command's line of the table."""
    cells = [name]
    for field in ("wall", "processor"):
        alone, beside = (statistics.median(getattr(times, field) for times in runs) for runs in (idle, busy))
        cells += [f"{alone:.2f} s", f"{beside:.2f} s", f"{beside / alone:.2f}"]
    return f"| {' | '.join([*cells, f'{spread(idle):.0%} / {spread(busy):.0%}'])} |"


def spread(runs: list[Times]) -> float:
    walls = [times.wall for times in runs]
    return (max(walls) - min(walls)) / statistics.median(walls)


if __name__ == "__main__":
    main()
