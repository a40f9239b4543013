"""A line on standard error for each call of the graph, where the environment asks for it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from itertools import count
from typing import Any, cast
from weakref import WeakKeyDictionary

from rrt_edge.runtime.running.runner import NEVER, AnyRunner, Cache, Call, Float, Part, PartDone, Pass

VARIABLE = "RRT_EDGE_TRACE"
WIDTHS = {"call": 5, "form": 4, "depths": 6, "rows": 5, "waiting": 7, "KV": 9, "gate": 15, "exit": 4, "ms": 8}


def traced(runner: AnyRunner) -> AnyRunner:
    """The runner, which prints a line for each of its calls where RRT_EDGE_TRACE is set and is not 0."""
    return runner if os.environ.get(VARIABLE, "0") in ("", "0") else cast(AnyRunner, _TracedRunner(runner))


class _TracedRunner:
    """Runs what another runner runs and prints a line for it; that runner answers all else that is asked of this one.

    docs/engine.md explains the columns. A step that serves several sequences has a line for each.
    """

    def __init__(self, runner: AnyRunner) -> None:
        self._runner, self._numbers = runner, count(1)
        self._newest: WeakKeyDictionary[Cache, int] = WeakKeyDictionary()  # position of the ids that entered last

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, binding: Any, cache: Cache, call: Call) -> Pass:
        counts = self._counts(cache, call.first, call)
        began = time.perf_counter()
        done = self._runner.run(binding, cache, call)
        depths = f"{call.first}" if call.first == call.last else f"{call.first}-{call.last}"
        reached = call.threshold >= NEVER or float(done.gate[-1]) >= call.threshold
        exit_depth = f"{done.last}" if len(call.logit_rows) and reached else "-"
        self._print("run", began, [(depths, *counts, _gate(done.gate, call.threshold), exit_depth)])
        return done

    def step(self, binding: Any, parts: Sequence[Part[Any]]) -> list[PartDone]:
        counts = [self._counts(part.cache, part.depth, part) for part in parts]
        began = time.perf_counter()
        done = self._runner.step(binding, parts)
        entries = []
        for part, own, returned in zip(parts, counts, done, strict=True):
            gate = _gate(returned.gate, *part.thresholds[-1:])
            entries.append((f"{part.depth}", *own, gate, f"{part.depth}" if len(returned.logits) else "-"))
        self._print("step", began, entries)
        return done

    def _counts(self, cache: Cache, depth: int, ran: Call | Part[Any]) -> tuple[str, str, str]:
        """Rows that go on from the depth before, rows of earlier tokens that had waited there, and KV rows."""
        if ran.rows.ndim == 1:
            self._newest[cache] = ran.position
        count = len(ran.rows) + (0 if ran.exited is None else len(ran.exited))
        waiting = min(max(0, self._newest.get(cache, sys.maxsize) - ran.position), count)
        valid, room = cache.room(depth)
        return f"{count - waiting}", f"{waiting}", f"{valid}/{room}"

    def _print(self, form: str, began: float, entries: Sequence[Sequence[str]]) -> None:
        milliseconds = f"{1e3 * (time.perf_counter() - began):.2f}"
        number = next(self._numbers)
        lines: list[Sequence[str]] = [tuple(WIDTHS)] if number == 1 else []
        for index, entry in enumerate(entries):
            lines.append((f"{number}", form, *entry, "" if index else milliseconds))
        padded = ["  ".join(map(str.rjust, line, WIDTHS.values())).rstrip() for line in lines]
        print("\n".join(padded) + "\n", end="", file=sys.stderr, flush=True)  # at once: other threads print too


def _gate(gates: Float, threshold: float = NEVER) -> str:
    """The last row's gate, beside the threshold where that decides."""
    if not len(gates):
        return "-"
    gate = float(gates[-1])
    verdict = f"{'>=' if gate >= threshold else '<'}{threshold:.5g}" if 0 < threshold < NEVER else ""
    return f"{gate:.5f}{verdict}"
