"""Servers that stay up for the whole session's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.serving import Served, serving


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Served]]:
    """Start `rrt-edge serve BUNDLE` with more arguments, and variables of its environment by name."""
    pytest.importorskip("uvicorn")
    with ExitStack() as stack:

        def start(bundle: Path, *options: str, **environment: str) -> Served:
            return stack.enter_context(serving(bundle, *options, **environment))

        yield start
