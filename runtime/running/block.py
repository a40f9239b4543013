"""The block graph on the CPU, driven depth by depth: keys and values are written where they are kept.

A call runs rows of one sequence: any number at one depth, or one at each of several depths a draft's depth apart, which
read the weights together. Steps of several sequences run in the loop graph, which is opened for the first of them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.block_contract import (
    BLOCK_GRAPH,
    OUTPUTS,
    block_inputs,
    block_outputs,
    last_row,
    length,
    small_inputs,
    small_outputs,
)
from rrt_edge.runtime.errors import RRTEdgeError
from rrt_edge.runtime.running.cpu import Binding, Graph
from rrt_edge.runtime.running.cpu_cache import KVCache, Planes
from rrt_edge.runtime.running.cpu_calls import CPUCalls
from rrt_edge.runtime.running.cpu_runner import CPURunner
from rrt_edge.runtime.running.hidden import on_host
from rrt_edge.runtime.running.in_place import InPlace
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.runner import ALWAYS, NEVER, Call, Part, PartDone, Pass, stayed_of
from rrt_edge.runtime.system.closing import still_open

Float = NDArray[np.float32]
SHARED = 3  # sequences from which on a step of the loop graph is faster than a call for each
log = logging.getLogger(__name__)


class BlockRunner(CPURunner):
    """The block graph, block.onnx: the `Runner` on the CPU of bundles that have it.

    Raises:
        BundleError: onnxruntime does not load the graph, or it is not the graph the manifest describes.
    """

    def __init__(
        self,
        bundle: Path,
        architecture: Architecture,
        threads: int | None,
        context: int = 1,
        budget: KVBudget | None = None,
        mmap: bool = True,
        loop_graph: Callable[[], Graph] | None = None,
    ) -> None:
        """
        Args:
            loop_graph: opens the one that steps of several sequences share; by default they take turns.
            context: tokens a conversation may hold: it decides which frequencies rotate (LongRoPE).
            budget: what keys and values of all conversations may take.
            mmap: map the weights; else they are read.
        """
        super().__init__(bundle / BLOCK_GRAPH, architecture, threads, context, budget, mmap)
        self.check_contract(block_inputs(architecture), block_outputs(architecture))
        self._open_loop_graph = loop_graph
        self._loop_graph: Graph | None = None
        self._opening = threading.Lock()

    def bind(self) -> BlockBinding:
        """A binding for one caller at a time; what is bound stays so between calls."""
        binding = BlockBinding(self)
        self._closing.add(binding)
        return binding

    def close(self) -> None:
        with self._opening:
            if self._loop_graph is not None:
                self._loop_graph.close()
            self._loop_graph = self._open_loop_graph = None
        super().close()

    def run(self, binding: BlockBinding, cache: KVCache, call: Call) -> Pass:
        """`Runner.run`, a call of the graph for each depth."""
        rows, stayed = on_host(call.rows), stayed_of(call)
        decides, gates = call.threshold < NEVER, list[float]()
        for depth in range(call.first, call.last + 1):
            least = np.full(len(rows), NEVER, np.float32)
            if depth == call.last or (decides and len(call.logit_rows) > 1):
                least[list(call.logit_rows)] = ALWAYS
            elif decides and len(call.logit_rows):
                least[list(call.logit_rows)] = call.threshold
            part = Part(cache, depth, rows, call.position, least, stayed=stayed)
            [done] = self._call(binding, [part])
            gates.append(float(done.gate[-1]))
            if depth == call.last or done.gate[-1] >= call.threshold:
                break
            rows, stayed = on_host(done.hidden), 1 - done.gate
        return Pass(call.first, depth, done.logits, done.hidden, done.gate, tuple(gates))

    def step(self, binding: BlockBinding, parts: Sequence[Part[KVCache]]) -> list[PartDone]:
        """`Runner.step`: one call for single rows of a sequence that stand a draft's depth apart, one for each other
        part; or one of the loop graph for all."""
        if len({id(part.cache) for part in parts}) >= SHARED:
            loop_graph = self._for_several()
            if loop_graph is not None:
                return loop_graph.step(binding.of_loop_graph(loop_graph), parts)
        done: dict[int, PartDone] = {}
        for indices in _together(parts):
            for index, outcome in zip(indices, self._call(binding, [parts[index] for index in indices]), strict=True):
                done[index] = outcome
        return [done[index] for index in range(len(parts))]

    def _for_several(self) -> Graph | None:
        """The loop graph, which is opened where it was not yet; None where it cannot be."""
        with self._opening:
            if self._loop_graph is None and self._open_loop_graph is not None:
                try:
                    self._loop_graph = self._open_loop_graph()
                except RRTEdgeError as error:
                    log.warning("%s; requests take turns", error)
                self._open_loop_graph = None
            return self._loop_graph

    def _call(self, binding: BlockBinding, parts: Sequence[Part[KVCache]]) -> list[PartDone]:
        """Run parts of one sequence, in order of depth, each an entry of the batch."""
        first, cache = parts[0], parts[0].cache
        count = len(first.rows)
        depths = [part.depth for part in parts]
        if not cache.fits(depths, count):
            binding.forget()  # what has to grow goes at once
            cache.make_room(depths, count)
        planes = cache.side_by_side(depths)
        if planes is None:  # the depths' rows are kept apart
            return [outcome for part in parts for outcome in self._call(binding, [part])]
        hidden, gate, logits = binding.run(parts, planes)
        done, answered = [], 0
        for entry, part in enumerate(parts):
            cache.wrote(part.depth, count, part.position)
            reached = int((gate[entry] >= part.thresholds).sum())
            done.append(PartDone(hidden[entry], gate[entry], logits[answered : answered + reached]))
            answered += reached
        return done


def _together(parts: Sequence[Part[KVCache]]) -> list[list[int]]:
    """The indices of parts that run in one call each, in order of depth."""
    calls: list[list[int]] = []
    for index in sorted(range(len(parts)), key=lambda index: parts[index].depth):
        part = parts[index]
        for call in calls:
            last = parts[call[-1]]
            if (
                last.cache is part.cache
                and part.depth == last.depth + part.cache.stride
                and len(part.rows) == len(last.rows) == 1
            ):
                call.append(index)
                break
        else:
            calls.append([index])
    return calls


class BlockBinding:
    """Inputs and outputs bound for one caller, for each number of entries and depth of the first: keys and values are
    bound again only where they have moved."""

    def __init__(self, runner: BlockRunner) -> None:
        self._runner: BlockRunner | None = runner
        self._bound: dict[tuple[int, int], _Bound] = {}
        self._of_loop_graph: Binding | None = None
        self.calls = CPUCalls(runner.path)

    def close(self) -> None:
        """Let go of all that is bound, and of the session with it."""
        self._runner = None
        self._bound.clear()

    def of_loop_graph(self, graph: Graph) -> Binding:
        """The binding of the loop graph, for the same caller."""
        if self._of_loop_graph is None:
            self._of_loop_graph = graph.bind()
        return self._of_loop_graph

    def forget(self) -> None:
        """Hold no keys and values any more."""
        for bound in self._bound.values():
            bound.forget()
        if self._of_loop_graph is not None:
            self._of_loop_graph.forget()

    def run(self, parts: Sequence[Part[KVCache]], planes: Sequence[Planes]) -> tuple[Float, Float, Float]:
        """Run E entries of S rows: (hidden states [E, S, H], gates [E, S], logits of rows that reach their least).

        Args:
            planes: keys and values [layers, E, KV, room, D] of each KV group, in which new rows are written.

        Raises:
            RRTEdgeError: onnxruntime failed, or took longer than a step may.
            BundleError: an output has another shape than the graph of a bundle gives.
        """
        runner = still_open(self._runner)
        key = (parts[0].depth, len(parts))
        if key not in self._bound:
            self._bound[key] = _Bound(runner, len(parts))
        bound = self._bound[key]
        bound.feed(parts, planes)
        self.calls.run(runner.session, bound.held.io, len(parts) * len(parts[0].rows))
        hidden, gate = bound.results()
        asked = int((gate.ravel() >= bound.least).sum())
        logits = bound.held.logits(OUTPUTS.index("logits"), asked, runner.architecture.vocabulary, runner.path)
        return hidden, gate, logits


class _Bound:
    """One binding: its small inputs and outputs are the same arrays from call to call, while the rows are as many."""

    def __init__(self, runner: BlockRunner, entries: int) -> None:
        self.held = InPlace(runner)
        self._architecture, self._entries = runner.architecture, entries
        self._planes: list[Planes] = [()] * len(runner.architecture.kv_groups)
        self._ends: list[tuple[NDArray[Any], NDArray[Any]]] = []  # of each KV group, the two of them
        self._shape = (-1, -1)  # entries that enter as ids, rows

    def feed(self, parts: Sequence[Part[KVCache]], planes: Sequence[Planes]) -> None:
        """Put in what E entries of S rows need."""
        rows, entering = len(parts[0].rows), int(parts[0].rows.ndim == 1)
        if self._shape != (entering, rows):
            self._make(entering, rows)
        arrays, ends = self.held.arrays, self._ends
        longest = [0] * len(ends)
        for entry, part in enumerate(parts):
            arrays["depth"][entry] = part.depth - 1
            arrays["position_ids"][entry] = (
                part.position if rows == 1 else np.arange(part.position, part.position + rows)
            )
            arrays["least"][entry * rows : (entry + 1) * rows] = part.thresholds
            if "stayed" in arrays:
                arrays["stayed"][entry] = stayed_of(part)
            if part.rows.ndim == 1:
                arrays["input_ids"][0] = part.rows
            else:
                arrays["hidden"][entry - entering] = on_host(part.rows)
            for group, held in enumerate(part.cache.valid_rows(part.depth)):
                ends[group][0][entry] = held + rows - 1
                longest[group] = max(longest[group], held + rows)
        self.held.io.bind_output("logits")  # anew: how many rows have some differs from call to call
        for group, held_planes in enumerate(planes):
            ends[group][1][...] = longest[group]
            self._bind(group, held_planes)

    def _make(self, entering: int, rows: int) -> None:
        """Make and bind the arrays for so many rows; a prompt's differ from call to call."""
        shape, entries = self._architecture, self._entries
        sizes = {"entries": entries, "entering": entering, "going_on": entries - entering, "rows": rows}
        sizes["all_rows"] = entries * rows
        self.held.make(small_inputs(shape), sizes, small_outputs(shape))
        arrays = self.held.arrays
        groups = range(len(shape.kv_groups))
        self._ends = [(arrays[last_row(group).name], arrays[length(group).name]) for group in groups]
        self._shape = (entering, rows)

    def _bind(self, group: int, planes: Planes) -> None:
        """Bind a group's planes, each layer's as input and as output."""
        if self._planes[group] is planes:
            return
        for name, plane in zip(("key", "value"), planes, strict=True):
            for index, layer in enumerate(self._architecture.kv_groups[group]):
                self.held.bind_plane(f"{name}.1.{layer}", plane[index])
        self._planes[group] = planes

    def forget(self) -> None:
        """Hold no keys and values; what runs next binds its own."""
        self._planes = [()] * len(self._planes)

    @property
    def least(self) -> Float:
        """The gates from which on rows have logits, [E * S]."""
        return self.held.arrays["least"]

    def results(self) -> tuple[Float, Float]:
        """Copies of hidden states and gates."""
        return self.held.arrays["hidden_out"].copy(), self.held.arrays["gate"].copy()
