"""What a process says of the memory it took."""

from __future__ import annotations

import subprocess
import sys

MB = 1_000_000
PROCESS = f"""
from rrt_edge.runtime.system.memory import peak_memory_bytes
before = peak_memory_bytes()
block = b"x" * {100 * MB}
del block
print(before, peak_memory_bytes())
"""


def test_the_peak_is_what_the_process_itself_held() -> None:
    """It keeps what was freed again, and holds nothing of a larger process that started it."""
    larger = f"""
import subprocess, sys
block = b"x" * {300 * MB}
subprocess.run([sys.executable, "-P", "-c", {PROCESS!r}], check=True)
"""
    done = subprocess.run([sys.executable, "-P", "-c", larger], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < 200 * MB
    assert 99 * MB <= after - before <= 120 * MB
