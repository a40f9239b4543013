"""Write files and folders so that whoever reads, and whenever this is killed, there is the whole old or new one.

Everything is written under a name of this run beside its target (`.NAME.RUN.partial`), brought to the disk, and takes
the target's place in one step. Where a system cannot exchange two folders, the old one is `.NAME.RUN.old` for a moment;
whoever opens a missing target then puts it back (`recover`). What is to be deleted is `.NAME.RUN.gone` first.
docs/reliability.md says what that guarantees.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.system.exchange import exchange, settle, sync_folder
from rrt_edge.runtime.system.locks import locked, stem

CHUNK = 1 << 20  # bytes hashed at a time
SPARES = 4  # descriptors that removing a folder takes, and one in it
PATIENCE = 10.0  # seconds to wait for another who writes the same file
SCARCE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EIO)
FULL = (errno.ENOSPC, errno.EDQUOT)
NOT_HERE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EISDIR,
    errno.ENAMETOOLONG, errno.ELOOP,
)  # fmt: skip
_LEFT = re.compile(r"\.(?P<name>.+?)(?:\.[0-9]+-[0-9a-f]{8})?\.(?P<kind>partial|old|gone|lock)")
_TORCH = re.compile(r"PytorchStreamWriter|inline_container")
_SYSTEM_ERROR = re.compile(r"os error (\d+)")  # how safetensors reports what the system said


@contextmanager
def new_folder(out: Path, kind: str, is_ours: Callable[[Path], bool], patience: float = 0.0) -> Iterator[Path]:
    """Yield an empty folder beside `out` that takes its place when the block ends well, and is removed otherwise.

    Nobody else writes `out` meanwhile; files get the mode that new files have.

    Args:
        out: where the folder is wanted; may hold an earlier folder of the same kind, which is replaced.
        kind: what is written, for messages: "bundle", "checkpoint".
        is_ours: says whether an existing folder is of that kind and may be replaced.
        patience: seconds to wait for another who writes it.

    Raises:
        BadInputError: `out` exists and is something else, or its parent cannot be written.
        RRTEdgeError: another process writes it, or the disk is full.
    """
    out = out.resolve()
    with explained(out), writing(out, patience) as alone:
        recover(out)
        if alone:
            sweep(out)
        check_replaceable(out, kind, is_ours)
        partial, spares = _beside(out, "partial"), _spares()
        try:
            partial.mkdir()
            yield partial
            settle(partial, partial.stat().st_mode & 0o666)
            _take_place(partial, out)
        finally:
            _close(spares)
            shutil.rmtree(partial, ignore_errors=True)  # the old one, where it was exchanged


@contextmanager
def new_file(out: Path, patience: float = PATIENCE) -> Iterator[Path]:
    """Yield an empty file beside `out` that takes its place when the block ends well.

    Nobody else writes `out` meanwhile: what is read of it inside the block is what is replaced.

    Raises:
        BadInputError: it cannot be written.
        RRTEdgeError: another process writes it, or the disk is full.
    """
    out = out.resolve()
    with explained(out):
        if out.exists() and not out.is_file():
            what = "is a folder" if out.is_dir() else "is not a file"
            raise BadInputError(f"{out}: {what}; name a file")
        with locked(out, patience) as alone:
            if alone:
                sweep(out)
            partial = _beside(out, "partial")
            try:
                partial.open("xb").close()
                mode = partial.stat().st_mode & 0o777
                yield partial
                settle(partial, mode)
                partial.replace(out)
                sync_folder(out.parent)
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink(missing_ok=True)


@contextmanager
def writing(out: Path, patience: float = 0.0) -> Iterator[bool]:
    """Be the only one who writes `out` while the block runs; yields as `locked` does.

    Raises:
        BadInputError: its parent cannot be written.
        RRTEdgeError: another process writes it, or the disk is full.
    """
    with ExitStack() as stack:
        with explained(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            alone = stack.enter_context(locked(out, patience))
        yield alone


def check_replaceable(out: Path, kind: str, is_ours: Callable[[Path], bool]) -> None:
    """Raise `BadInputError` where `out` exists and is not a folder of ours that may be replaced."""
    try:
        if not out.exists():
            return
        if not out.is_dir() or (any(out.iterdir()) and not is_ours(out)):
            raise BadInputError(f"{out}: exists and is not a {kind}; choose another name or remove it")
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise _explanation(error, out) or error from error


def remove_folder(folder: Path) -> None:
    """Delete a folder, so that nobody ever sees half of it, and with it what killed runs left beside it.

    Raises:
        RRTEdgeError: another process writes it.
        OSError: it cannot be deleted.
    """
    with locked(folder):
        sweep(folder)
        gone = _beside(folder.resolve(), "gone")
        folder.resolve().rename(gone)
        sync_folder(gone.parent)
        shutil.rmtree(gone)


def recover(out: Path) -> None:
    """Put a folder back whose replacement was killed where the system could not exchange the two in one step."""
    try:
        if out.exists() or not _left_beside(out, "old"):
            return
        out = out.resolve()
        with locked(out, PATIENCE):
            for old in _left_beside(out, "old"):
                if not out.exists():
                    old.rename(out)
                    sync_folder(out.parent)
    except (OSError, RRTEdgeError):  # nothing can be put back; whoever opens it says that it is missing
        pass


def sweep(out: Path) -> None:
    """Delete what killed runs left beside `out`, which nobody else may be writing."""
    if out.exists():
        for old in _left_beside(out, "old"):
            old.rename(_beside(out, "gone"))  # from now on nobody takes it for whole
    for kind in ("partial", "gone"):
        for path in _left_beside(out, kind):
            _delete(path)


def abandoned(folder: Path) -> list[Path]:
    """What killed runs left in a folder beside its entries, and nobody uses."""
    paths: list[Path] = []
    for target in _targets(folder):
        with contextlib.suppress(RRTEdgeError, OSError), locked(target):
            paths += [path for kind in ("partial", "old", "gone") for path in _left_beside(target, kind)]
    return paths


def recover_all(folder: Path) -> None:
    """`recover` every entry of a folder."""
    for target in _targets(folder):
        recover(target)


def sweep_folder(folder: Path) -> None:
    """Delete what killed runs left in a folder beside its entries, and put back what is whole and missing."""
    recover_all(folder)
    for target in _targets(folder):
        with contextlib.suppress(RRTEdgeError, OSError), locked(target) as alone:
            if alone:
                sweep(target)


def _targets(folder: Path) -> list[Path]:
    """The entries, there or not, beside which something stands for their sake."""
    try:
        matches = [_LEFT.fullmatch(path.name) for path in folder.iterdir()]
    except OSError:
        return []
    return [folder / name for name in sorted({match["name"] for match in matches if match})]


@contextmanager
def scratch_folder(parent: Path, kind: str) -> Iterator[Path]:
    """Yield an empty folder in `parent` for this run alone."""
    folder = parent / f"{kind}-{os.getpid()}-{secrets.token_hex(4)}"
    with locked(folder):
        spares = _spares()
        try:
            folder.mkdir()
            yield folder
        finally:
            _close(spares)
            shutil.rmtree(folder, ignore_errors=True)


def sweep_scratch(parent: Path, kind: str) -> None:
    """Delete the folders of `scratch_folder` that killed runs left."""
    for stale in abandoned_scratch(parent, kind):
        with contextlib.suppress(RRTEdgeError, OSError), locked(stale):
            shutil.rmtree(stale, ignore_errors=True)


def abandoned_scratch(parent: Path, kind: str) -> list[Path]:
    """The folders of `scratch_folder` that killed runs left, and nobody uses."""
    names = {path.name for path in parent.glob(f"{kind}-*")}
    names |= {path.name[1:].removesuffix(".lock") for path in parent.glob(f".{kind}-*.lock")}
    folders: list[Path] = []
    for folder in (parent / name for name in sorted(names)):
        with contextlib.suppress(RRTEdgeError, OSError), locked(folder):
            folders += [folder] if folder.exists() else []
    return folders


def sha256(path: Path, advance: Callable[[int], None] | None = None) -> str:
    """The hexadecimal SHA-256 of a file, read in pieces; `advance` is called with the bytes of each."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            digest.update(piece)
            if advance is not None:
                advance(len(piece))
    return digest.hexdigest()


def _take_place(partial: Path, out: Path) -> None:
    """Let `partial` be `out`; what was there is `partial` then, or gone."""
    if not out.exists():
        partial.rename(out)
        sync_folder(out.parent)
    elif exchange(partial, out):
        sync_folder(out.parent)
    else:
        old = _beside(out, "old")
        out.rename(old)
        try:
            partial.rename(out)
        except BaseException:
            old.rename(out)
            raise
        sync_folder(out.parent)
        _delete(old.rename(_beside(out, "gone")))  # from its first step on nobody takes it for whole


def _beside(out: Path, kind: str) -> Path:
    return out.with_name(f"{stem(out)}.{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _left_beside(out: Path, kind: str) -> list[Path]:
    """What runs have left of one kind; earlier versions gave it no run."""
    run = re.compile(rf"{re.escape(stem(out))}(\.[0-9]+-[0-9a-f]{{8}})?\.{kind}")
    return sorted(path for path in out.parent.iterdir() if run.fullmatch(path.name))


def _spares() -> list[int]:
    """Descriptors to let go of before a folder is removed, which needs some where there are no others left."""
    spares: list[int] = []
    try:
        for _ in range(SPARES):
            spares.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        _close(spares)
        raise
    return spares


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def system_code(error: Exception) -> int | None:
    """The system's number for what went wrong, where it is the system that says so, be it in a library's words."""
    if isinstance(error, OSError):
        return error.errno
    text = str(error)
    match = _SYSTEM_ERROR.search(text)
    return int(match[1]) if match else next((code for code in SCARCE if os.strerror(code) in text), None)


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Raise what the system says of the disk or the place, while `out` is written, as our error."""
    try:
        yield
    except Exception as error:
        explained = _explanation(error, out)
        if explained is None:
            raise
        raise explained from error


def _explanation(error: Exception, out: Path) -> RRTEdgeError | None:
    """Our error for what the system says of a disk or place, as an OSError or in the text of a library's error."""
    if isinstance(error, RRTEdgeError):
        return None
    if isinstance(error, RuntimeError) and _TORCH.search(str(error)):  # torch.save does not say what the system said
        return RRTEdgeError(f"{out}: cannot be written; the disk is full, or files may not be as large (ulimit -f)")
    code = system_code(error)
    if code is None:
        return RRTEdgeError(f"{error}; {out} was not written") if isinstance(error, OSError) else None
    named = getattr(error, "filename", None)
    if isinstance(named, str) and not Path(named).is_relative_to(out.parent):
        return RRTEdgeError(f"{named}: {os.strerror(code)}; {out} was not written")
    if code in FULL:
        return RRTEdgeError(f"{out}: the disk is full; nothing was left behind, free some space and run again")
    if code == errno.EFBIG:
        return RRTEdgeError(f"{out}: a file would be larger than is allowed here (ulimit -f); nothing was left behind")
    if code in (errno.EMFILE, errno.ENFILE):
        return RRTEdgeError(f"{out}: too many files are open (ulimit -n); nothing was left behind")
    if code in NOT_HERE:
        return BadInputError(f"{out}: cannot be written ({os.strerror(code)}); choose another place")
    return RRTEdgeError(f"{out}: cannot be written ({os.strerror(code)}); nothing was left behind")
