"""What the tests of devices share."""

from __future__ import annotations

import pytest

from rrt_edge.runtime.device_trial import add
from rrt_edge.runtime.errors import RRTEdgeError


@pytest.fixture(scope="session")
def webgpu() -> str:
    """The device's name, where it can at least add."""
    try:
        add("webgpu")
    except RRTEdgeError as error:
        pytest.skip(str(error))
    return "webgpu"
