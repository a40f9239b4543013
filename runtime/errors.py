"""The errors users see: one family, each with one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import threading
import traceback

MOST_WORDS = 300  # characters of another library's error that ours repeat


class RRTEdgeError(Exception):
    """Something failed while working on good input; the command line exits with status 1."""


class OutOfMemoryError(RRTEdgeError):
    """A device has no memory left, or keys and values would go over their budget; what was held elsewhere is whole."""


class BadInputError(RRTEdgeError):
    """The input is wrong (a file, a field, an option); the command line exits with status 2."""


class BundleError(BadInputError):
    """A bundle is missing, damaged, or not one this version reads."""


class DeviceError(BadInputError):
    """A device is not there, or cannot run what it is asked to."""


class ContextFullError(BadInputError):
    """A prompt does not fit the context."""


class MissingExtraError(BadInputError):
    """Something needs a package that an extra brings."""

    def __init__(self, what: str, extra: str, missing: ModuleNotFoundError) -> None:
        super().__init__(f"{what} needs {missing.name}, which is not installed: pip install 'rrt-edge[{extra}]'")


def as_ours(error: BaseException) -> RRTEdgeError:
    """An error as one of ours, whatever it is: a panic of a library in Rust is no `Exception`."""
    if isinstance(error, RRTEdgeError):
        return error
    ours = RRTEdgeError(f"the request failed ({in_words(error)})")
    ours.__cause__ = error
    return ours


def let_go(error: BaseException | None) -> None:
    """Clear the locals of the calls that an error ended, which would live as long as it: keys and values among them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def from_outside(error: BaseException) -> bool:
    """Whether an error is for the program as a whole: an interrupt or an exit, which the main thread alone hears of."""
    main = threading.current_thread() is threading.main_thread()
    return main and isinstance(error, KeyboardInterrupt | SystemExit)


def in_words(error: BaseException) -> str:
    """An error of another library on one line."""
    try:
        text = " ".join(str(error).split())[:MOST_WORDS]
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
