"""The errors users see: one family, each with one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 4000  # characters of an error, in which a path may be long
MOST_WORDS = 300  # characters of another library's error that ours repeat


class RRTEdgeError(Exception):
    """Something failed while working on good input; the command line exits with status 1.

    Whatever an error repeats of a file or a request, its text is one line that any terminal can show.
    """

    def __str__(self) -> str:
        return one_line(super().__str__(), LONGEST)


class OutOfMemoryError(RRTEdgeError):
    """A device has no memory left, or keys and values would go over their budget; what was held elsewhere is whole."""


class BadInputError(RRTEdgeError):
    """The input is wrong (a file, a field, an option); the command line exits with status 2.

    Attributes:
        param: the argument or the option at fault, as Python names it; empty where it is none.
    """

    def __init__(self, message: object = "", param: str = "") -> None:
        super().__init__(message)
        self.param = param


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


@contextmanager
def about(param: str) -> Iterator[None]:
    """Say what argument or option bad input in this block is of, where the error does not."""
    try:
        yield
    except BadInputError as error:
        error.param = error.param or param
        raise


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


def one_line(text: object, most: int = MOST_WORDS) -> str:
    """A text from outside on one line of about so many characters, each of which can be shown; the middle may go."""
    line = str(text)
    if len(line) > 4 * most:
        line = line[: 2 * most] + line[-2 * most :]
    if not line.isprintable():
        line = " ".join(line.split())
        line = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in line)
    return line if len(line) <= most else f"{line[: most // 2]}...{line[-most // 2 :]}"


def in_words(error: BaseException) -> str:
    """An error of another library on one line."""
    try:
        text = one_line(error)
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
