"""What the tests of the runtime share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rrt_edge.runtime import Model
from rrt_edge.runtime.library import download as downloading
from rrt_edge.runtime.running.block import BlockBinding, BlockRunner
from rrt_edge.runtime.running.cpu_cache import KVCache
from rrt_edge.runtime.running.runner import Call, Pass


@pytest.fixture(scope="module")
def model(bundle: Path) -> Iterator[Model]:
    with Model.load(bundle) as loaded:
        yield loaded


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each run through some depths."""
    seen: list[int] = []
    run = BlockRunner.run

    def counted(self: BlockRunner, binding: BlockBinding, cache: KVCache, call: Call) -> Pass:
        seen.append(len(call.rows))
        return run(self, binding, cache, call)

    monkeypatch.setattr(BlockRunner, "run", counted)
    return seen


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without bundles, who waits for no connection."""
    monkeypatch.setenv("RRT_EDGE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloading, "PAUSE", 0.0)
    return tmp_path / "home"
