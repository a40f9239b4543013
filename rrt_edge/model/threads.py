"""Threads that each run torch on a share of the cores.

They meet when their parts are done, not within each operation: where other programs use the processor too, operations
that all threads share wait for the slowest at each of thousands of meetings.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import torch


def torch_threads(count: int) -> ThreadPoolExecutor:
    """A pool of `count` threads in which torch's operations have `1 / count` of the cores that they have here."""
    cores = torch.get_num_threads()
    pool, ready = ThreadPoolExecutor(count), Barrier(count)

    def begin(_: int) -> None:
        torch.set_num_threads(max(1, cores // count))
        ready.wait()

    list(pool.map(begin, range(count)))
    torch.set_num_threads(cores)  # for threads that others start: the number above is theirs too until then
    return pool
