"""Ctrl-C while the program `rrt-edge` starts ends it without a word; `rrt_edge.cli` has one, once it is there."""

from __future__ import annotations

import signal
import sys

is_program = bool(sys.argv) and sys.argv[0].endswith(("rrt-edge", "rrt-edge.exe"))
if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
