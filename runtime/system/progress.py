"""`Progress`: the callback through which long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[int, int, str], None]  # done, in all (0: not known), what is done
