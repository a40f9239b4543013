"""The errors users see: one family, each with one line that says what is wrong, where, and what to do."""

from __future__ import annotations


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
