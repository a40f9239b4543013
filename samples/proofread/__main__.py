"""Correct texts: `python samples/proofread FILE`, or a pipe; `lsp` is the language server, `serve` the page."""

from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = "error: interrupted; nothing half written was left behind\n"


def main() -> int:
    # In the middle of an import Ctrl-C would be swallowed, or become another error.
    signal.signal(signal.SIGINT, lambda *_: (os.write(2, INTERRUPTED.encode()), os._exit(130)))
    arguments = sys.argv[1:]
    face = arguments[0] if arguments and arguments[0] in ("lsp", "serve") else ""
    if face == "lsp":
        from lsp import main as run
    elif face == "serve":
        from serve import main as run
    else:
        from command import main as run
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return run(arguments[bool(face) :])
    except KeyboardInterrupt:
        sys.stderr.write(INTERRUPTED)
        return 130


if __name__ == "__main__":
    sys.exit(main())
