"""The checkpoints a stopped training goes on from: saved under a name that does not count, listed, then renamed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from rrt_edge.runtime.system.exchange import settle, sync_folder
from rrt_edge.runtime.system.files import new_file, remove_folder, sha256
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.training.distributed import is_main

SAVING = "saving"  # the folder in which one is made
LIST = "whole.json"  # bytes and hash of every other file
OPTIONS = "options.json"  # what a run was started with
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d+)")


def say(text: str) -> None:
    """Print a line beside those of transformers' Trainer; of several processes one does."""
    if is_main():
        print(text, flush=True)


def publish(made: Path, work: Path) -> None:
    """Give a checkpoint that has been saved its place in `work`, and let older ones than the last two go."""
    files = [path for path in sorted(made.rglob("*")) if path.is_file()]
    listed = {
        path.relative_to(made).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
    }
    (made / LIST).write_text(json.dumps(listed), "utf-8")
    settle(made, mode(made))
    if (work / made.name).exists():  # one that was not whole, or that a run of other options saved
        remove_folder(work / made.name)
    made.rename(work / made.name)
    sync_folder(work)
    for old in _newest_first(work)[KEPT:]:
        remove_folder(old)


def last_whole(work: Path) -> tuple[Path | None, int]:
    """The last checkpoint that is whole, and its step; says which later ones are not."""
    shutil.rmtree(work / SAVING, ignore_errors=True)
    for folder in _newest_first(work):
        lacking = _lacking(folder)
        if lacking is None:
            return folder, _step(folder)
        say(f"{folder}: is not whole ({lacking}), skipped")
    return None, 0


def tell_changes(work: Path, started_with: dict[str, Any]) -> None:
    """Say which options differ from those that the run before was started with, and keep these for the next."""
    path, options = work / OPTIONS, json.loads(json.dumps(started_with))
    try:
        before = parse_json(path.read_text("utf-8"))
    except (OSError, ValueError):  # the first run
        before = {}
    for name in sorted(before.keys() & options.keys()):
        if before[name] != options[name]:
            say(f"{name.replace('_', '-')} is {options[name]} now; the run that this one goes on had {before[name]}")
    if before != options:
        with new_file(path) as partial:
            partial.write_text(json.dumps(options, indent=1), "utf-8")


def mode(folder: Path) -> int:
    """The mode of a new file, by that of a folder that was made with the process's umask."""
    return folder.stat().st_mode & 0o666


def _newest_first(work: Path) -> list[Path]:
    folders = [path for path in work.iterdir() if _NAME.fullmatch(path.name)] if work.is_dir() else []
    return sorted(folders, key=_step, reverse=True)


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _lacking(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None where it is as it was saved."""
    try:
        listed = parse_json((folder / LIST).read_text("utf-8"))
        for name, entry in listed.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
                return f"{name} is damaged"
    except OSError:
        return f"it has no {LIST}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{LIST} is damaged"
    return None
