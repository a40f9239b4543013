"""The bundles a user has installed: a folder for each, found by its short name."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.manifest import FILE, Manifest
from rrt_edge.runtime.errors import BadInputError, BundleError, RRTEdgeError
from rrt_edge.runtime.library.origin import origin_of
from rrt_edge.runtime.library.source import UNPACKED, fetched, parse_source
from rrt_edge.runtime.system.files import (
    CHUNK,
    abandoned,
    abandoned_scratch,
    new_folder,
    recover,
    recover_all,
    remove_folder,
    sweep_folder,
    sweep_scratch,
    writing,
)
from rrt_edge.runtime.system.home import home
from rrt_edge.runtime.system.progress import Progress

_NAME = re.compile(r"(?!(?i:con|prn|aux|nul|com\d|lpt\d)(\.|$))[A-Za-z0-9]([A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?")
_LONGEST_FITTING = 64  # characters of a name that is made up
_SHOWN = 5  # names an error lists
_NEAR = 0.7  # of 1: how alike a misspelt name and the right one are
_LOOKED_AT = 1000  # files of a folder in which a misspelt bundle may be
_DEMO = Path(__file__).parent / "demo"  # the bundle that wheels bring along; a checkout has none
_LONG = 1000  # characters; no path is as long


def bundles_folder() -> Path:
    """Return the folder of the installed bundles, which are each in a folder of their name."""
    return home() / "bundles"


def downloads_folder() -> Path:
    """Return the folder in which unfinished downloads wait for the pull that goes on with them."""
    return home() / "downloads"


@dataclass(frozen=True)
class Installed:
    """An installed bundle; `problem` says why it cannot be used, where it cannot, and `manifest` may be None then."""

    name: str
    folder: Path
    bytes: int
    manifest: Manifest | None
    problem: str | None = None

    def facts(self) -> dict[str, Any]:
        """Return what `rrt-edge list --json` says of the bundle."""
        facts: dict[str, Any] = {"name": self.name, "folder": str(self.folder), "bytes": self.bytes}
        if self.manifest is not None:
            shape, gate = self.manifest.architecture, self.manifest.gate
            facts |= {"family": shape.family, "loops": shape.loops, "bits": self.manifest.quantization.bits}
            facts |= {"kv_rule": self.manifest.kv_rule, "gate_trained": gate.trained, "threshold": gate.threshold}
        if (origin := origin_of(self.folder)) is not None:
            facts["source"] = origin.source
        return {**facts, "problem": self.problem}


def installed_names() -> list[str]:
    """The names of the installed bundles, the one that rrt-edge brings along among them, without a look inside."""
    folder = bundles_folder()
    names = {_DEMO.name} if _DEMO.is_dir() else set()
    if folder.is_dir():
        recover_all(folder)
        names |= {path.name for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_dir()}
    return sorted(names)


def folder_of(name: str) -> Path:
    """Where an installed bundle lies; one that was pulled takes the place of the one that rrt-edge brings along."""
    own = bundles_folder() / name
    return _DEMO if name == _DEMO.name and _DEMO.is_dir() and not own.is_dir() else own


def installed() -> list[Installed]:
    """The installed bundles by name, the damaged ones with what is wrong; hashes are not checked."""
    return [look_at(folder_of(name)) for name in installed_names()]


def size_of(folder: Path) -> int:
    """Bytes of a folder's files, or of a file; what goes meanwhile is left out."""
    total = 0
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def look_at(folder: Path) -> Installed:
    """What the manifest of a bundle folder says, and what the folder lacks of it."""
    bytes_here = size_of(folder)
    manifest = None
    try:
        manifest = Manifest.read(folder)
        manifest.check_sizes(folder)
    except BundleError as error:
        return Installed(folder.name, folder, bytes_here, manifest, str(error).partition("; ")[0])  # without its remedy
    return Installed(folder.name, folder, bytes_here, manifest)


def find_bundle(text: str | Path) -> Path:
    """The folder that a path or the short name of an installed bundle stands for; a folder that exists wins.

    Raises:
        BundleError: there is neither; names the installed bundles that are spelled nearly so.
    """
    name = str(text)
    if len(name) <= _LONG:
        recover(Path(text))
    if is_folder(Path(text)):
        return Path(text)
    if len(name) > _LONG:  # a prompt in the place of a bundle
        raise BundleError(f"{name[:40]}...: no such bundle folder; the bundle comes first")
    if "/" in name or os.sep in name or name in ("", ".", ".."):
        remedy = _meant(name, _bundles_beside(Path(name))) or "make one with rrt-edge export"
        raise BundleError(f"{name}: no such bundle folder; {remedy}")
    if _NAME.fullmatch(name):
        recover(bundles_folder() / name)
        if folder_of(name).is_dir():
            return folder_of(name)
    remedy = _meant(name, [*_bundles_beside(Path(name)), *installed_names()]) or _installed()
    raise BundleError(f"{name}: no such bundle folder, and no such bundle is installed; {remedy}")


def is_folder(path: Path) -> bool:
    """Whether a folder is there; a text that cannot be a path is none."""
    try:
        return path.is_dir()
    except OSError:  # longer than a name can be
        return False


def _meant(name: str, known: Iterable[str]) -> str:
    """Which bundles, by name or path, are spelled nearly so; empty where none is."""
    by_last = {Path(other).name.lower(): other for other in known}
    close = difflib.get_close_matches(Path(name).name.lower(), by_last, _SHOWN, _NEAR)
    return f"did you mean {' or '.join(by_last[match] for match in close)}?" if close else ""


def bundles_in(folder: Path, most: int | None = None) -> dict[str, Path]:
    """The bundles that lie in a folder, by the names of their folders.

    Args:
        most: entries of the folder that are looked at.
    """
    return {path.name: path for path in islice(folder.iterdir(), most) if (path / FILE).is_file()}


def _bundles_beside(path: Path) -> list[str]:
    try:
        return list(map(str, bundles_in(path.parent, _LOOKED_AT).values()))
    except OSError:
        return []


def _installed() -> str:
    names = installed_names()
    if not names:
        return "make one with rrt-edge export, or get one with rrt-edge pull"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"installed: {', '.join(names[:_SHOWN])}{more}"


def find_installed(name: str) -> Installed:
    """The bundle of that name which was pulled or exported, damaged or not.

    Raises:
        BadInputError: there is none.
    """
    folder = _place(name)
    if not folder.is_dir():
        if folder_of(name).is_dir():
            raise BadInputError(f"{name}: comes with rrt-edge and goes with it; it is no bundle of yours to remove")
        raise BadInputError(f"{name}: no such bundle is installed; {_meant(name, installed_names()) or _installed()}")
    return look_at(folder)


def remove(name: str) -> int:
    """Delete an installed bundle; returns the bytes that are free again.

    Raises:
        BadInputError: there is no bundle of that name.
        RRTEdgeError: it cannot be deleted.
    """
    bundle = find_installed(name)
    try:
        if bundle.folder.is_symlink():  # what it points to is not ours
            bundle.folder.unlink()
            return 0
        remove_folder(bundle.folder)
    except OSError as error:
        raise RRTEdgeError(f"{bundle.folder}: cannot be removed ({error}); end the programs that use it") from error
    return bundle.bytes


def fitting_name(text: str) -> str:
    """A name that a bundle may have, as like a text as can be."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", text)[:_LONGEST_FITTING].strip("._-")
    return name if _NAME.fullmatch(name) else f"model-{name}".strip("-")


def _place(name: str) -> Path:
    """Where a bundle of that name is, or would be."""
    if not _NAME.fullmatch(name):
        raise BadInputError(f"{name!r}: not a bundle's name; it may have letters, digits, dots, dashes, underscores")
    return bundles_folder() / name


def pull(
    source: str,
    name: str | None = None,
    *,
    sha256: str | None = None,
    revision: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Installed:
    """Install a bundle under a short name. Nothing appears under it before every hash of the bundle is right.

    An interrupted download goes on where it stopped when the same bundle is pulled again.

    Args:
        source: a bundle's folder, its .zip or .tar.gz, the https address of one, or a Hugging Face repository
            `owner/name`.
        name: the short name; by default that of the folder, the archive or the repository.
        sha256: the archive's, in hexadecimal; needed with an address.
        revision: branch, tag or commit of the repository.
        force: replace an installed bundle of that name.
        progress: called with bytes done, bytes in all (0 where that is not known) and what is being done.

    Raises:
        BadInputError: the source, the name or an option is wrong, the hash differs, or what came is not a bundle.
        RRTEdgeError: the connection or the disk failed.
    """
    parsed = parse_source(source, sha256, revision)
    out = _place(name or parsed.name)
    if out.is_symlink():
        raise BadInputError(f"{out.name}: is a link in {out.parent}; remove it first: rrt-edge rm {out.name}")
    try:
        sweep_folder(bundles_folder())
        sweep_scratch(downloads_folder(), UNPACKED)
        with writing(out):
            if out.exists() and not force:
                raise BadInputError(f"{out.name}: installed already; choose another --name, or replace it with --force")
            with fetched(parsed, downloads_folder(), progress) as (folder, ours):
                _install(folder, out, ours, source, progress)
    except OSError as error:
        raise RRTEdgeError(f"{error.filename or home()}: {error.strerror or error}; nothing was installed") from error
    finally:
        with contextlib.suppress(OSError):
            bundles_folder().rmdir()  # where nothing is installed
    return look_at(out)


def leftovers() -> list[Path]:
    """What pulls and removals that were killed have left, and nobody uses; the next pull deletes it."""
    return [*abandoned(bundles_folder()), *abandoned_scratch(downloads_folder(), UNPACKED)]


def _install(folder: Path, out: Path, ours: bool, source: str, progress: Progress | None) -> None:
    """Check a bundle and put its files, and no others, where they belong; moved where the folder is ours."""
    partial = None
    try:
        manifest = Manifest.read(folder)
        manifest.check_sizes(folder)
        with new_folder(out, "bundle", lambda _: True) as partial:
            if not ours:
                _copy(manifest, folder, partial, progress)
            if progress is not None:
                progress(0, 0, "checking")
            manifest.check_hashes(folder if ours else partial)
            if ours:
                for file in (FILE, *manifest.files):
                    shutil.move(folder / file, partial / file)
    except BundleError as error:  # of folders that are gone by the time it is read
        said = str(error).replace(str(partial), source)
        raise BundleError(said.replace(str(folder), source)) from error


def _copy(manifest: Manifest, folder: Path, out: Path, progress: Progress | None) -> None:
    total = manifest.total_bytes
    done = 0
    for name in (FILE, *manifest.files):
        with (folder / name).open("rb") as source, (out / name).open("xb") as target:
            while piece := source.read(CHUNK):
                target.write(piece)
                done += len(piece)
                if progress is not None:
                    progress(min(done, total), total, "copying")
