"""A source's content as one hash, by which what was exported from it is found again; read without torch.

Every byte counts. Headers and samples would be quicker to read but miss a layer that was trained on, and an export
reads all of it anyway, at a hundred times the cost. That a later start need not read gigabytes, each file's hash is
remembered with its size, times and inode: what was written, moved or touched since is read again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rrt_edge.conversion.folder import TEMPLATES, read_fields, weight_files
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.system.files import new_file, sha256
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.progress import Progress

BESIDE_WEIGHTS = (".json", ".jinja", ".model", ".txt", ".tiktoken")  # config, tokenizer, templates
SETTLED = 2e9  # nanoseconds in which two writes may leave the same times, on the coarsest file system
MEGABYTE = 1_000_000
Signature = list[int]


def content_hash(source: Path, remembered: Path, progress: Progress | None = None) -> str:
    """The hash of all that an export reads of a folder or GGUF file; it is the same wherever that lies.

    Args:
        remembered: the file that keeps the hashes of files; may be missing, and is written anew.
        progress: called with megabytes read and to be read.

    Raises:
        BadInputError: a file is missing or cannot be read.
    """
    files, known = _files(source), _remembered(remembered)
    now, signatures = time.time_ns(), {name: _signature(path) for name, path in files.items()}
    entries = {name: known.get(str(path.resolve())) for name, path in files.items()}
    unread = [name for name, entry in entries.items() if entry is None or entry[0] != signatures[name]]
    total, done = sum(signatures[name][0] for name in unread), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done // MEGABYTE, -(-total // MEGABYTE), "MB of the source read")

    hashes = {name: str(entry[1]) for name, entry in entries.items() if entry is not None and name not in unread}
    for name in unread:
        try:
            hashes[name] = sha256(files[name], advance)
        except OSError as error:
            raise BadInputError(f"{files[name]}: cannot be read ({error.strerror or error})") from error
        if now - max(signatures[name][1:3]) > SETTLED and _signature(files[name]) == signatures[name]:
            known[str(files[name].resolve())] = (signatures[name], hashes[name])
    if unread:
        _remember(remembered, known)
    listing = "".join(f"{hashes[name]} {name}\n" for name in files)
    return hashlib.sha256(listing.encode()).hexdigest()


def signatures(source: Path) -> dict[str, Signature]:
    """What tells, without reading them, whether the files of a source are still the same.

    Raises:
        BadInputError: as `content_hash`.
    """
    return {name: _signature(path) for name, path in _files(source).items()}


def _files(source: Path) -> dict[str, Path]:
    """The files that count, by what they are called in the source, in order."""
    if source.is_file():
        return {"": source}
    names = set(weight_files(source, read_fields(source))[0])
    names |= {path.name for path in source.iterdir() if path.suffix in BESIDE_WEIGHTS and path.is_file()}
    names |= {f"{TEMPLATES}/{path.name}" for path in (source / TEMPLATES).glob("*.jinja")}
    return {name: source / name for name in sorted(names)}


def _signature(path: Path) -> Signature:
    try:
        about = path.stat()
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror or error})") from error
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]


def _remembered(path: Path) -> dict[str, tuple[Any, Any]]:
    """Signature and hash of each file that was read before."""
    try:
        entries = parse_json(path.read_text("utf-8"))
        return {str(name): (entry["signature"], entry["sha256"]) for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # none yet, or not ours: all is read
        return {}


def _remember(path: Path, known: Mapping[str, tuple[Any, Any]]) -> None:
    entries = {
        name: {"signature": signature, "sha256": digest}
        for name, (signature, digest) in known.items()
        if Path(name).is_file()
    }
    with contextlib.suppress(RRTEdgeError, OSError):  # then the next start reads them again
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as partial:
            partial.write_text(json.dumps(entries, indent=1), "utf-8")
