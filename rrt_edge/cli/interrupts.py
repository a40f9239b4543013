"""Ctrl-C: one line and status 130, at any moment from the first import on."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

STATUS = 130
MESSAGE = "interrupted; nothing half written was left behind"


def interrupted_line(as_json: bool) -> str:
    error = {"error": {"type": "KeyboardInterrupt", "message": MESSAGE}}
    return f"{json.dumps(error)}\n" if as_json else f"error: {MESSAGE}\n"


def take_charge() -> None:
    """Of the whole process, as the program that it runs: outside a command, Ctrl-C ends it at once."""
    if _handler() in (signal.default_int_handler, signal.SIG_DFL):
        signal.signal(signal.SIGINT, _end)


@contextmanager
def interruptible() -> Iterator[None]:
    """While a command runs, Ctrl-C is a KeyboardInterrupt; afterwards, where nothing is left to do, it ends all."""
    if _handler() is not _end:
        yield
        return
    signal.signal(signal.SIGINT, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def importing() -> Iterator[None]:
    """While nothing happens but imports, Ctrl-C ends the process at once.

    A KeyboardInterrupt in the middle of an import is swallowed by some libraries and turned into other errors by
    others.
    """
    before = _handler()
    if before not in (signal.default_int_handler, signal.SIG_DFL, _interrupt):
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler if before is signal.SIG_DFL else before)


def _handler() -> Any:
    """What an interrupt does now; None where it is not for this thread to say."""
    main = threading.current_thread() is threading.main_thread()
    return signal.getsignal(signal.SIGINT) if main else None


def _end(*_: object) -> None:
    os.write(2, interrupted_line("--json" in sys.argv).encode())
    os._exit(STATUS)


def _interrupt(*_: object) -> None:
    """
    Raises:
        KeyboardInterrupt: always; Python's own handler is another, by which one knows that nobody took charge.
    """
    raise KeyboardInterrupt


def from_interrupt(error: BaseException | None) -> bool:
    """Whether an error is an interrupt, or what a library made of one: in the middle of an import, many do."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False
