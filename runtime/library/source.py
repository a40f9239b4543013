"""Where a bundle may be pulled from: a folder, an archive, an https address, a Hugging Face repository."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.files import scratch_folder, writing
from rrt_edge.runtime.system.files import sha256 as sha256_of
from rrt_edge.runtime.system.progress import Progress

Kind = Literal["folder", "archive", "address", "repository"]
UNPACKED = "unpacked"  # how the folders are called into which archives are unpacked
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_SUFFIX = re.compile(r"\.(zip|tgz|tar(\.\w+)?)$", re.IGNORECASE)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """A checked source; `name` is the short name that it suggests."""

    text: str
    kind: Kind
    name: str
    sha256: str | None
    revision: str | None


def parse_source(text: str, sha256: str | None, revision: str | None) -> Source:
    """The source that a text stands for; a folder or file that exists wins over a repository.

    Raises:
        BadInputError: it is none of the four kinds, or an address that is not to be used; or an option does not go with
            its kind or is missing.
    """
    kind = _kind(text)
    if kind == "address":
        from rrt_edge.runtime.library.download import check_address

        check_address(text)
    if revision is not None and kind != "repository":
        raise BadInputError(f"--revision is of a Hugging Face repository, owner/name; {text} is none")
    if sha256 is None and kind == "address":
        raise BadInputError("an address needs --sha256, the archive's SHA-256 as its publisher states it")
    if sha256 is not None:
        if kind not in ("address", "archive"):
            raise BadInputError(f"--sha256 is of an archive; {text} is a {kind}, checked by its manifest's hashes")
        sha256 = sha256.strip().lower().removeprefix("sha256:")
        if not _SHA256.fullmatch(sha256):
            raise BadInputError(f"--sha256 {sha256!r}: must be 64 hexadecimal digits")
    last = unquote(urlsplit(text).path) if kind == "address" else text
    if kind in ("folder", "archive"):
        last = Path(text).resolve().name
    name = last.rpartition("/")[2]
    return Source(text, kind, _SUFFIX.sub("", name) if kind in ("address", "archive") else name, sha256, revision)


def _kind(text: str) -> Kind:
    if _SCHEME.match(text):
        return "address"
    try:
        if Path(text).is_dir():
            return "folder"
        if Path(text).is_file():
            return "archive"
    except OSError:  # longer than a name can be
        pass
    if _REPOSITORY.fullmatch(text):
        return "repository"
    raise BadInputError(f"{text}: no such folder or archive, no https address, no repository owner/name of the hub")


@contextmanager
def fetched(source: Source, downloads: Path, progress: Progress | None) -> Iterator[tuple[Path, bool]]:
    """A folder on this machine that holds what the source has, and whether its files are ours to move.

    An interruption leaves what was downloaded in `downloads`; it is removed once it was used, or found to be wrong.

    Raises:
        BadInputError, RRTEdgeError: as `store.pull`.
    """
    if source.kind == "folder":
        yield Path(source.text), False
    elif source.kind == "repository":
        from rrt_edge.runtime.library.hub import snapshot

        with snapshot(source.text, source.revision, downloads, progress) as fetched_folder:
            yield fetched_folder
    else:
        with _unpacked(source, downloads, progress) as folder:
            yield folder, True


@contextmanager
def _unpacked(source: Source, downloads: Path, progress: Progress | None) -> Iterator[Path]:
    from rrt_edge.runtime.library.archive import unpack

    downloads.mkdir(parents=True, exist_ok=True)
    archive, is_ours = Path(source.text), source.kind == "address"
    if is_ours:
        archive = downloads / f"{source.sha256}.partial"
    elif source.sha256 is not None and (digest := sha256_of(archive)) != source.sha256:
        raise BadInputError(f"{archive}: its SHA-256 is {digest}, not the one asked for; nothing was installed")
    with writing(archive) if is_ours else nullcontext():
        if is_ours:
            from rrt_edge.runtime.library.download import download

            assert source.sha256 is not None
            download(source.text, archive, source.sha256, progress)
        try:
            with scratch_folder(downloads, UNPACKED) as folder:
                yield unpack(archive, folder, source.text, progress)
        except BadInputError:
            if is_ours:
                archive.unlink()  # the same would come again
            raise
        if is_ours:
            archive.unlink()
