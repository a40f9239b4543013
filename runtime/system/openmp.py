"""How torch's threads wait for work: importing this before torch has them sleep instead of looping.

OpenMP's threads loop for milliseconds behind each parallel piece of work. On a busy machine a looping thread takes the
turn of the one that it waits for. What the environment already says stays as it is.
"""

from __future__ import annotations

import os

WAIT_POLICY = "OMP_WAIT_POLICY"  # of every OpenMP: libgomp's on Linux, libomp's on macOS and Windows

os.environ.setdefault(WAIT_POLICY, "passive")
