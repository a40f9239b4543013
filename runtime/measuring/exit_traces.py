"""Exit traces to replay: the depths at which the tokens of a reply leave, drawn or recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.json_text import parse_json

Trace = tuple[int, ...]


def trace(share: float, tokens: int, run: float, rng: np.random.Generator) -> list[bool]:
    """Which tokens leave early: exactly `share` of them, spread independently or in runs of about `run`."""
    early = round(share * tokens)
    if run <= 1 or early in (0, tokens):
        order = rng.permutation(tokens)
        return [bool(place < early) for place in order]
    count = max(1, round(early / run))
    inside = (
        np.diff([0, *sorted(rng.choice(np.arange(1, early), count - 1, replace=False)), early]) if early > 1 else [1]
    )
    between = np.sort(rng.integers(0, tokens - early + 1, len(inside)))
    flags = [False] * (tokens - early)
    for place, length in sorted(zip(between.tolist(), list(inside), strict=True), reverse=True):
        flags[place:place] = [True] * int(length)
    return flags


def read_recorded(path: Path, loops: int) -> list[Trace]:
    """Recorded replies, one a line as `rrt-edge generate --json` prints them: `{"tokens": [{"depth": 1}, ...]}`.

    Raises:
        BadInputError: the file cannot be read, has no reply, or a depth is not among 1 to `loops`.
    """
    replies: list[Trace] = []
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                depths = [token["depth"] for token in parse_json(line)["tokens"]]
                wrong = [depth for depth in depths if depth not in range(1, loops + 1)]
                if wrong:
                    raise BadInputError(f"{path}: line {number}: depth {wrong[0]!r} is not among 1 to {loops}")
                if depths:
                    replies.append(tuple(depths))
    except OSError as error:
        raise BadInputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError) as error:
        message = "is not a reply as rrt-edge generate --json prints it"
        raise BadInputError(f"{path}: line {number} {message}") from error
    if not replies:
        raise BadInputError(f"{path}: holds no reply; write some with rrt-edge generate --json")
    return replies


def joined(replies: list[Trace], tokens: int, first: int) -> Trace:
    """The depths of at least so many tokens: reply `first` and those behind it, over again where they are too few."""
    depths: list[int] = []
    while len(depths) < tokens:
        depths += replies[first % len(replies)]
        first += 1
    return tuple(depths)
