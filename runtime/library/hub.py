"""Get a bundle from a Hugging Face repository: its own files and no others, going on with what an earlier try left."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.manifest import FILE, Manifest
from rrt_edge.runtime.errors import BadInputError, RRTEdgeError
from rrt_edge.runtime.library.download import check_room
from rrt_edge.runtime.system.files import writing
from rrt_edge.runtime.system.progress import Progress


@contextmanager
def snapshot(
    repository: str, revision: str | None, downloads: Path, progress: Progress | None
) -> Iterator[tuple[Path, bool]]:
    """A folder with the bundle of a repository, and whether its files may be moved.

    Without a connection, or with HF_HUB_OFFLINE, it is the hub's own cache where that holds the bundle.

    Raises:
        BadInputError: there is no such repository or revision, it is not open to this user, or holds no bundle.
        RRTEdgeError: the hub was not reached.
    """
    folder = downloads / f"hub--{repository.replace('/', '--')}"
    commit = _commit(repository, revision)
    if isinstance(commit, Path):
        yield commit, False
        return
    with writing(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(repository, commit, folder, progress)
            yield folder, True
        except BadInputError:
            shutil.rmtree(folder, ignore_errors=True)  # the same would come again
            raise
        shutil.rmtree(folder, ignore_errors=True)


def _commit(repository: str, revision: str | None) -> str | Path:
    """The commit that the revision stands for, or what the cache holds of it where the hub is not to be reached."""
    from huggingface_hub import HfApi

    try:
        return str(HfApi().model_info(repository, revision=revision).sha)
    except Exception as error:  # httpx's, requests' or its own, by version
        return _cached(repository, revision, error)


def _download(repository: str, commit: str, folder: Path, progress: Progress | None) -> None:
    """The manifest first: it says which files are the bundle's. One after the other, so that Ctrl-C stops at once."""
    from huggingface_hub import errors, hf_hub_download

    def get(name: str, bars: type) -> None:
        options: dict[str, Any] = {"tqdm_class": bars} if tells else {}
        try:
            hf_hub_download(repository, name, revision=commit, local_dir=folder, **options)
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):  # the hub was not reached
                raise
            why = "so it is not a bundle" if name == FILE else f"which its {FILE} lists"
            raise BadInputError(f"{repository}: holds no {name} at revision {commit[:12]}, {why}") from error

    tells = "tqdm_class" in inspect.signature(hf_hub_download).parameters  # versions before 1.0 show bars of their own
    try:
        get(FILE, _bars(None, 0, 0))
        files = Manifest.read(folder).files
        total, done = sum(file.bytes for file in files.values()), 0
        bytes_here = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        check_room(folder, total - bytes_here)
        for name, file in files.items():
            get(name, _bars(progress, done, total))
            done += file.bytes
            if progress is not None:
                progress(done, total, "downloading")
    except RRTEdgeError:
        raise
    except Exception as error:
        raise RRTEdgeError(f"{repository}: the hub's connection broke ({_line(error)}); pull again to go on") from error


def _cached(repository: str, revision: str | None, error: Exception) -> Path:
    """The hub's cache of the repository; our error for the hub's where that is not complete."""
    from huggingface_hub import errors, snapshot_download

    if isinstance(error, errors.GatedRepoError):
        raise BadInputError(f"{repository}: open to those who were granted access; ask on its page") from error
    if isinstance(error, errors.RepositoryNotFoundError):
        raise BadInputError(f"{repository}: no such repository, or a private one (hf auth login)") from error
    if isinstance(error, errors.RevisionNotFoundError):
        raise BadInputError(f"{repository}: has no revision {revision!r}") from error
    if isinstance(error, errors.HFValidationError):
        raise BadInputError(f"{repository}: not a repository's name ({_line(error)})") from error
    try:
        folder = Path(snapshot_download(repository, revision=revision, local_files_only=True, allow_patterns=[FILE]))
        Manifest.read(folder).check_sizes(folder)
    except Exception as missing:
        if isinstance(error, errors.OfflineModeIsEnabled):
            raise RRTEdgeError(
                f"{repository}: HF_HUB_OFFLINE is set, and the hub's cache does not hold it; unset it to download"
            ) from missing
        raise RRTEdgeError(f"{repository}: the hub was not reached ({_line(error)}); pull again later") from error
    return folder


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _bars(progress: Progress | None, before: int, total: int) -> type:
    """A progress bar class for a file that comes after `before` bytes, which draws nothing and tells `progress`."""
    from huggingface_hub.utils import tqdm

    most = before

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.told = 0.0
            super().__init__(*args, **{**options, "disable": True})
            self.update(options.get("initial") or 0)

        def update(self, count: float | None = 1) -> None:
            nonlocal most
            self.told += count or 0
            most = max(most, before + int(self.told))  # of two bars that count the same bytes, the one ahead
            if progress is not None:
                progress(min(most, total), total, "downloading")

    return Bar
