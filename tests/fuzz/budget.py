"""How many cases the suite tries: few and always the same, or as many more as RRT_EDGE_FUZZ says, each time others.

    RRT_EDGE_FUZZ=100 python -m pytest tests/fuzz

tries a hundred times as many. What fails is told with the case that failed, and with what repeats it.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

VARIABLE = "RRT_EDGE_FUZZ"
TIMES = int(os.environ.get(VARIABLE, "1"))


def cases(count: int) -> settings:
    """The settings of a test that tries so many cases, or a multiple of them."""
    return settings(
        max_examples=count * TIMES,
        derandomize=TIMES == 1,
        print_blob=True,
        deadline=None,
        suppress_health_check=list(HealthCheck),  # some of them measure time, which is a matter of chance
    )
