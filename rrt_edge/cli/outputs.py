"""What a command says and how it ends where the system refuses it something: a disk, a file, its own output."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import sys
from typing import NoReturn

OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)  # where no file is named: it is standard output


def give_up(error: Exception, as_json: bool) -> NoReturn:
    """Say what the system said on one line, and end with status 1."""
    message = " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno is not None:  # safetensors gives none
        where = "standard output" if error.errno in OF_OUTPUT else "the system"
        message = f"{error.filename or where}: {error.strerror or error}"
    line = json.dumps({"error": {"type": type(error).__name__, "message": message}}) if as_json else f"error: {message}"
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    _let_go_of_output()
    sys.exit(1)


def _let_go_of_output() -> None:
    """Throw away what standard output did not take, or Python would try again at the end, and say so."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            sys.stdout.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, sys.stdout.fileno())
            os.close(nowhere)
            sys.stdout.flush()
