"""Bundles that are exported into the store: once for what they are made from, and found again by it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.library.origin import Origin, origin_of
from rrt_edge.runtime.library.store import bundles_folder, folder_of, installed_names, look_at
from rrt_edge.runtime.system.files import new_folder, sweep_folder, writing

PATIENCE = 3600.0  # seconds to wait for another who exports the same


def find_exported(origin: Origin) -> Path | None:
    """The whole bundle that was made from the same content in the same way, under whatever name."""
    for name in installed_names():
        folder = folder_of(name)
        known = origin_of(folder)
        if known is not None and known.makes_the_same_as(origin) and look_at(folder).problem is None:
            return folder
    return None


def names_exported_from(source: str) -> list[str]:
    """The names of the bundles that were exported from a folder, a file or a hub's name."""
    origins = {name: origin_of(folder_of(name)) for name in installed_names()}
    return [name for name, origin in origins.items() if origin is not None and origin.source == source]


def export_once(origin: Origin, name: str, write: Callable[[Path], None]) -> Path:
    """The bundle made from `origin`: the one that there is, or what `write` puts into the folder that it is given.

    It takes the place of what the same source was exported as before it changed; where the name is another bundle's,
    it gets a number.

    Raises:
        RRTEdgeError: the disk is full, or as `write`.
    """
    bundles = bundles_folder()
    try:
        sweep_folder(bundles)
        for candidate in _numbered(name):
            place = bundles / candidate
            with writing(place, PATIENCE):
                match = find_exported(origin)  # by somebody else meanwhile
                if match is not None:
                    return match
                if _is_free(place, origin):
                    _write(place, origin, write)
                    return place
    finally:
        with contextlib.suppress(OSError):
            bundles.rmdir()  # where nothing is installed
    raise AssertionError("there is always another number")


def _numbered(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}-{number}" for number in count(2))


def _is_free(place: Path, origin: Origin) -> bool:
    if not place.exists() and not place.is_symlink():
        return True
    known = origin_of(place)
    return known is not None and known.is_remade_by(origin)


def _write(place: Path, origin: Origin, write: Callable[[Path], None]) -> None:
    with new_folder(place, "bundle", lambda _: True) as partial:
        bundle = partial / "bundle"
        try:
            write(bundle)
        except RRTEdgeError as error:
            raise type(error)(str(error).replace(str(bundle), str(place))) from error
        for path in list(bundle.iterdir()):
            path.rename(partial / path.name)
        bundle.rmdir()
        origin.write(partial)
