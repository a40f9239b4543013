"""What the tests of the runtime share."""

from __future__ import annotations

import numpy as np
import pytest

from rrt_edge.runtime.graph import Graph


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of each call of the graph."""
    seen: list[int] = []
    run = Graph.run

    def counted(self: Graph, binding: object, cache: object, rows: np.ndarray, **given: object) -> object:
        seen.append(len(rows))
        return run(self, binding, cache, rows, **given)  # type: ignore[arg-type]

    monkeypatch.setattr(Graph, "run", counted)
    return seen
