"""Kill commands at every call that changes a folder, and look at what is there: the table of docs/reliability.md.

    python benchmarks/kills.py                       # every call of every command: half an hour on two cores
    python benchmarks/kills.py --most 10 --json      # ten calls of each, spread over the run

Each command runs in a process that counts the calls that make, rename, open for writing or remove a file or folder
(Python's audit events) and ends by SIGKILL at one of them. Then the target must be the whole old one or the whole new
one, the same command must succeed when it is run again, and nothing else may be left. Needs fork: Linux or macOS.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path = [
    entry for entry in sys.path if Path(entry or ".").resolve() != ROOT
]  # the installed package, not the folder
sys.path.append(str(ROOT))  # behind it: tests.checkpoints
os.environ |= {"HF_HUB_OFFLINE": "1", "RRT_EDGE_DEVICE": "cpu", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}

import accelerate  # noqa: F401  imported once, before the processes fork
import matplotlib.pyplot  # noqa: F401
import safetensors
import torch  # noqa: F401

import rrt_edge.exporters
import rrt_edge.training
from rrt_edge.cli import main
from rrt_edge.conversion.checkpoint import Checkpoint
from rrt_edge.runtime import Model, Sampling
from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.library.store import find_bundle
from rrt_edge.runtime.session_file import read_conversation
from rrt_edge.runtime.system import exchange

CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.truncate", "os.chmod", "rrt_edge.exchange"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OUTSIDE = ("/dev/", "/proc/", "/sys/")


@dataclass(frozen=True)
class Command:
    """What to run in a folder made ready; `whole` raises where the target is neither the old one nor the new one."""

    name: str
    run: Callable[[], object]
    whole: Callable[[], object]
    may_be_missing: bool = False
    exchanges: bool = True  # or as on a system that cannot exchange two folders in one step


@dataclass
class Row:
    """Kills of a command: how often the target was missing or half, and running it again failed or left something."""

    command: str
    calls: int
    kills: int = 0
    lost: int = 0
    failed_again: int = 0
    left_behind: int = 0


def cli(*arguments: str) -> Callable[[], object]:
    return lambda: main(list(arguments), prog_name="rrt-edge")


def bundle(name: str) -> Callable[[], object]:
    def whole() -> None:
        folder = find_bundle(name)
        Manifest.read(folder).check_hashes(folder)

    return whole


def checkpoint(name: str) -> Callable[[], object]:
    def whole() -> None:
        with safetensors.safe_open(Checkpoint(name).folder / "model.safetensors", "np") as file:
            assert all(file.get_slice(key).get_shape() is not None for key in file.keys())  # noqa: SIM118
        assert Path(name, "tokenizer.json").is_file() and Path(name, "generation_config.json").is_file()

    return whole


def save_session() -> None:
    with Model.load("old") as model:
        session = model.session()
        session.generate("The cat", Sampling(max_tokens=6))
        session.save("talk.safetensors")


def whole_session() -> None:
    read_conversation(Path("talk.safetensors"), Manifest.read(Path("old")), 512)


TRAIN = ("train", "recursive", "out", "--data", "data.txt", "--stages", "uptrain", "--max-steps", "4")
COMMANDS = (
    Command("export", cli("export", "recursive", "new", "--bits", "8"), bundle("new"), may_be_missing=True),
    Command("export over a bundle", cli("export", "recursive", "old", "--bits", "8"), bundle("old")),
    Command(
        "export, without exchange", cli("export", "recursive", "old", "--bits", "8"), bundle("old"), exchanges=False
    ),
    Command("convert over a checkpoint", cli("convert", "source", "out", "--loops", "2"), checkpoint("out")),
    Command("train over a checkpoint", cli(*TRAIN, "--save-steps", "2", "--batch", "2"), checkpoint("out")),
    Command("calibrate", cli("calibrate", "old", "--data", "data.txt"), bundle("old")),
    Command("pull", cli("pull", "new.zip", "--name", "mine"), bundle("mine"), may_be_missing=True),
    Command("pull --force", cli("pull", "new.zip", "--name", "demo", "--force"), bundle("demo")),
    Command("rm", cli("rm", "demo", "--yes"), bundle("demo"), may_be_missing=True),
    Command("session save", save_session, whole_session),
)


def forked(run: Callable[[], object], kill_at: int = 0, exchanges: bool = True, log: Path | None = None) -> int:
    """Run in a process of its own; its status. At the call of that number it is killed (0: at none)."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        out = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if not exchanges:
            exchange._call = lambda: None  # type: ignore[assignment]
        counted = 0

        def count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal counted
            if not (event in CHANGES or (event == "open" and opens_to_write(arguments))):
                return
            counted += 1
            if counted == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(count)
        try:
            run()
            status = 0
        except SystemExit as ended:
            status = int(ended.code or 0)
        if kill_at < 0:  # tell how many there were
            Path(os.environ["KILLS_COUNT"]).write_text(str(counted))
    finally:
        os._exit(status)


def opens_to_write(arguments: tuple[Any, ...]) -> bool:
    path, _, flags = arguments
    return bool(flags & WRITES) and isinstance(path, (str, Path, os.PathLike)) and not str(path).startswith(OUTSIDE)


def prepare(folder: Path) -> None:
    """Two checkpoints, a bundle, an installed one, an archive, text and a saved conversation."""
    from tests.checkpoints import write_recursive, write_source

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    write_source(folder / "source", **sizes)
    write_recursive(folder / "source", folder / "recursive", rank=2)
    shutil.copytree(folder / "recursive", folder / "out")
    rrt_edge.exporters.export(folder / "recursive", folder / "old", bits=32)
    shutil.copytree(folder / "old", folder / "home" / "bundles" / "demo")
    shutil.make_archive(str(folder / "new"), "zip", folder / "old")
    (folder / "data.txt").write_text("The cat sees the hen. The dog eats hay.\n" * 30)
    os.chdir(folder)
    save_session()


def all_names(folder: Path) -> set[str]:
    """Everything there, but TensorBoard's logs, which are named by the time."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if ".tfevents." not in path.name}


def row_of(command: Command, ready: Path, place: Path, most: int) -> Row:
    """Kill a command at so many of its calls, and count what is wrong afterwards."""
    log = place.with_name("log.txt")

    def fresh() -> None:
        os.chdir("/")
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(ready, place)
        os.chdir(place)

    fresh()
    os.environ["KILLS_COUNT"] = str(place.with_name("count.txt"))
    if forked(command.run, -1, command.exchanges, log):
        sys.exit(f"{command.name} failed without being killed:\n{log.read_text()[-2000:]}")
    calls, expected = int(Path(os.environ["KILLS_COUNT"]).read_text()), all_names(place)
    row = Row(command.name, calls)
    chosen = (
        range(1, calls + 1) if calls <= most else sorted({1 + at * (calls - 1) // (most - 1) for at in range(most)})
    )
    for number in chosen:
        fresh()
        if forked(command.run, number, command.exchanges, log) != -signal.SIGKILL:
            continue  # a run with fewer calls than the first had
        row.kills += 1
        lost, missing = forked(command.whole, log=log) != 0, command.may_be_missing and not is_there(command)
        if lost and not missing:
            row.lost += 1
            print(f"{command.name}: killed at call {number} of {calls}: {log.read_text()[-500:]}", file=sys.stderr)
        if (command.name == "rm" and missing) or (command.name == "pull" and not missing):
            continue  # it is done, and would be refused now
        if forked(command.run, 0, command.exchanges, log):
            row.failed_again += 1
            print(f"{command.name}: again after call {number}: {log.read_text()[-500:]}", file=sys.stderr)
        more = all_names(place) - expected
        if more and command.name != "rm":
            row.left_behind += 1
            print(f"{command.name}: left after call {number}: {sorted(more)[:5]}", file=sys.stderr)
    return row


def is_there(command: Command) -> bool:
    """Whether a target that may be missing is there, be it half."""
    home = Path("home/bundles")
    return {"export": Path("new"), "pull": home / "mine", "rm": home / "demo"}[command.name].exists()


def measure() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--most", type=int, default=10**6, help="kills of each command")
    parser.add_argument("--only", help="commands whose names begin so")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ready, place = Path(folder, "ready"), Path(folder, "place")
        ready.mkdir()
        os.environ["RRT_EDGE_HOME"] = str(place / "home")
        log = Path(folder, "log.txt")
        if forked(lambda: prepare(ready), log=log):
            sys.exit(log.read_text()[-2000:])
        chosen = [command for command in COMMANDS if command.name.startswith(options.only or "")]
        rows = []
        for command in chosen:
            rows.append(row_of(command, ready, place, options.most))
            if not options.json:
                print(" | ".join(str(value) for value in asdict(rows[-1]).values()), flush=True)
        with contextlib.suppress(OSError):
            os.chdir("/")
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    sys.exit(any(row.lost or row.failed_again or row.left_behind for row in rows))


if __name__ == "__main__":
    measure()
