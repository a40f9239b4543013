"""Servers that stay up for the whole session's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rrt_edge.runtime import Model
from rrt_edge.runtime.bundle.chat_template import ChatTemplate
from tests.serving import Served, serving

TEMPLATE = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}{{ tools }}"


@pytest.fixture(scope="module")
def model(demo: Path) -> Iterator[Model]:
    """The trained demo."""
    with Model.load(demo) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def templated(bundle: Path) -> Iterator[Model]:
    """A random model, with a chat template that takes whatever there is."""
    with Model.load(bundle) as loaded:
        loaded._loaded.template = ChatTemplate(TEMPLATE, {})
        yield loaded


@pytest.fixture(scope="session")
def serve() -> Iterator[Callable[..., Served]]:
    """Start `rrt-edge serve BUNDLE` with more arguments, and variables of its environment by name."""
    pytest.importorskip("uvicorn")
    with ExitStack() as stack:

        def start(bundle: Path, *options: str, **environment: str) -> Served:
            return stack.enter_context(serving(bundle, *options, **environment))

        yield start
