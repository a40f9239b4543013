"""Ctrl-C: one line and status 130, at any moment from the first import on."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STATUS = 130
MESSAGE = "interrupted; nothing half written was left behind"


def interrupted_line(as_json: bool) -> str:
    error = {"error": {"type": "KeyboardInterrupt", "message": MESSAGE}}
    return f"{json.dumps(error)}\n" if as_json else f"error: {MESSAGE}\n"


@contextmanager
def importing() -> Iterator[None]:
    """While nothing happens but imports, Ctrl-C ends the process at once.

    A KeyboardInterrupt in the middle of an import is swallowed by some libraries and turned into other errors by
    others.
    """
    in_charge = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not in_charge or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(*_: object) -> None:
    os.write(2, interrupted_line("--json" in sys.argv).encode())
    os._exit(STATUS)
