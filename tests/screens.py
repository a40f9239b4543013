"""What a terminal shows, the lines that scrolled off included."""

from __future__ import annotations

import pyte


def scrollback(screen: pyte.HistoryScreen) -> list[str]:
    past = ["".join(line[column].data for column in range(screen.columns)) for line in screen.history.top]
    return "\n".join(line.rstrip() for line in [*past, *screen.display]).rstrip().split("\n")
