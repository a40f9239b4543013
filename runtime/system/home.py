"""The folder of all that is kept for this user."""

from __future__ import annotations

import os
from pathlib import Path

HOME = "RRT_EDGE_HOME"


def home() -> Path:
    """The folder of all that is kept for this user: RRT_EDGE_HOME, or rrt-edge's place among the user's data."""
    folder = os.environ.get(HOME)
    if folder:
        return Path(folder).expanduser().absolute()
    from platformdirs import user_data_path

    return user_data_path("rrt-edge")
