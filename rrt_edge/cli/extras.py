"""What the extras bring, as the installed package's metadata says it: `pip install 'rrt-edge[EXTRA]'`."""

from __future__ import annotations

import importlib.metadata
from functools import cache

FOR_CONTRIBUTORS = ("dev", "docs", "test")  # extras that no command needs
DISTRIBUTIONS = {"yaml": "pyyaml"}  # by the module they are imported as, where the two names differ


@cache
def extras() -> dict[str, tuple[str, ...]]:
    """By extra: the packages it brings, on whatever system, but for those that every installation has."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in importlib.metadata.requires("rrt-edge") or []]
    extra_of = [(requirement.name, _extra(str(requirement.marker or ""))) for requirement in needed]
    always = {"rrt-edge", *(name for name, extra in extra_of if extra is None)}
    brought: dict[str, list[str]] = {}
    for name, extra in extra_of:
        if extra is not None and extra not in FOR_CONTRIBUTORS and name not in always:
            brought.setdefault(extra, []).append(name)
    return {extra: tuple(names) for extra, names in brought.items()}


def extra_with(module: str) -> str | None:
    """The extra that brings a module, by the name it is imported as."""
    distribution = DISTRIBUTIONS.get(module, module)
    return next((extra for extra, names in extras().items() if distribution in names), None)


def _extra(marker: str) -> str | None:
    """The extra that a requirement's marker names."""
    _, extra, rest = marker.partition('extra == "')
    return rest.partition('"')[0] if extra else None
