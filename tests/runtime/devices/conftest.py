"""What the tests of devices share."""

from __future__ import annotations

import pytest

from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.measuring.device_trial import add


@pytest.fixture(scope="session")
def webgpu() -> str:
    """The device's name, where it can at least add."""
    try:
        add("webgpu")
    except RRTEdgeError as error:
        pytest.skip(str(error))
    return "webgpu"
