"""The folder of installed bundles, as tests look at it."""

from __future__ import annotations

from rrt_edge.runtime.library.store import bundles_folder, installed_names
from rrt_edge.runtime.system.home import home


def left_behind() -> list[str]:
    """Everything under the home folder but whole bundles."""
    whole = [bundles_folder() / name for name in installed_names()]
    paths = [
        path for path in home().rglob("*") if path.is_file() and not any(path.is_relative_to(one) for one in whole)
    ]
    folders = [path for path in bundles_folder().iterdir() if path not in whole] if bundles_folder().is_dir() else []
    return sorted(str(path.relative_to(home())) for path in [*paths, *folders])
