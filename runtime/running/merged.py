"""The graph whose depths have weights of their own, on the CPU: one call runs rows of one sequence through any depths.

Keys and values are written where they are kept. No two depths share weights, so that rows at different depths, and rows
of several sequences, take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.merged_contract import (
    OUTPUTS,
    ends,
    merged_inputs,
    merged_outputs,
    planes_of,
    small_inputs,
    small_outputs,
)
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.running.cpu_cache import KVCache, Planes
from rrt_edge.runtime.running.cpu_calls import CPUCalls
from rrt_edge.runtime.running.cpu_runner import CPURunner
from rrt_edge.runtime.running.hidden import on_host
from rrt_edge.runtime.running.in_place import InPlace
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.runner import ALWAYS, NEVER, Call, Part, PartDone, Pass
from rrt_edge.runtime.system.closing import still_open

Float = NDArray[np.float32]


class MergedRunner(CPURunner):
    """The graph of a bundle whose adapters are merged, model.onnx: the `Runner` on the CPU of such a bundle.

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
    ) -> None:
        """
        Args:
            context: tokens a conversation may hold: it decides which frequencies rotate (LongRoPE).
            budget: what keys and values of all conversations may take.
            mmap: map the weights; else they are read.
        """
        super().__init__(bundle / "model.onnx", architecture, threads, context, budget, mmap)
        self.slots = 1
        self.check_contract(merged_inputs(architecture), merged_outputs(architecture))

    def bind(self) -> MergedBinding:
        """A binding for one caller at a time; what is bound stays so between calls."""
        binding = MergedBinding(self)
        self._closing.add(binding)
        return binding

    def run(self, binding: MergedBinding, cache: KVCache, call: Call) -> Pass:
        """`Runner.run`, one call of the graph."""
        least = np.full(len(call.rows), NEVER, np.float32)
        least[list(call.logit_rows)] = ALWAYS
        return binding.run(cache, call, least)

    def step(self, binding: MergedBinding, parts: Sequence[Part[KVCache]]) -> list[PartDone]:
        """`Runner.step`, one call of the graph for each part."""
        done = []
        for part in parts:
            call = Call(part.rows, part.position, part.depth, part.depth)
            ran = binding.run(part.cache, call, part.thresholds)
            done.append(PartDone(ran.hidden, ran.gate, ran.logits))
        return done


class MergedBinding:
    """Inputs and outputs bound for one caller: small ones are the same arrays from call to call while the rows are as
    many, keys and values are bound again only where they have moved."""

    def __init__(self, runner: MergedRunner) -> None:
        self._runner: MergedRunner | None = runner
        self._held: InPlace | None = InPlace(runner)
        self._architecture, self._groups = runner.architecture, runner.architecture.kv_groups
        self._planes: list[list[Planes]] = []
        self._shape = (-1, -1)  # 1 where rows enter as ids, rows
        self.calls = CPUCalls(runner.path)
        self.forget()

    def close(self) -> None:
        """Let go of all that is bound, and of the session with it."""
        self._runner = self._held = None
        self.forget()

    def forget(self) -> None:
        """Hold no keys and values; what runs next binds its own."""
        self._planes = [[()] * len(self._groups) for _ in range(self._architecture.loops)]

    def run(self, cache: KVCache, call: Call, least: Float) -> Pass:
        """Run rows of one sequence through depths, until the last row may leave.

        Args:
            least: [S], the gate that each row must reach at the last of them for its logits to be computed.

        Raises:
            RRTEdgeError: onnxruntime failed, or took longer than a step may.
            BundleError: an output has another shape than the graph of a bundle gives.
        """
        runner, count = still_open(self._runner), len(call.rows)
        depths = range(call.first, call.last + 1)
        if not cache.fits(depths, count):
            self.forget()  # what has to grow goes at once
            cache.make_room(depths, count)
        self._feed(cache, call, least)
        self.calls.run(runner.session, self.held.io, count)
        arrays = self.held.arrays
        last = int(arrays["exit_depth"])
        if last not in depths:
            asked = f"{call.first} to {call.last} were asked for"
            raise BundleError(f"{runner.path}: ran depth {last} where {asked}; export the bundle again")
        for depth in range(call.first, last + 1):
            cache.wrote(depth, count, call.position)
        hidden, gate = arrays["hidden_out"][0].copy(), arrays["gate"][last - 1].copy()
        gates = tuple(arrays["gate"][call.first - 1 : last, -1].tolist())
        reached = int((gate >= least).sum())
        logits = self.held.logits(OUTPUTS.index("logits"), reached, self._architecture.vocabulary, runner.path)
        return Pass(call.first, last, logits, hidden, gate, gates)

    @property
    def held(self) -> InPlace:
        return still_open(self._held)

    def _feed(self, cache: KVCache, call: Call, least: Float) -> None:
        """Put in what the rows need."""
        rows, entering = len(call.rows), int(call.rows.ndim == 1)
        if self._shape != (entering, rows):
            self._make(entering, rows)
        arrays = self.held.arrays
        arrays["input_ids" if entering else "hidden"][0] = on_host(call.rows)
        arrays["position_ids"][0] = np.arange(call.position, call.position + rows)
        arrays["first"][...], arrays["last"][...], arrays["threshold"][...] = call.first, call.last, call.threshold
        arrays["least"][:] = least
        self.held.io.bind_output("logits")  # anew: how many rows have some differs from call to call
        for depth in range(1, self._architecture.loops + 1):
            side = cache.side_by_side([depth])
            assert side is not None  # one depth's planes always are
            for group, held in enumerate(cache.valid_rows(depth)):
                end, length = ends(depth, group)
                arrays[end.name][0], arrays[length.name][...] = held + rows - 1, held + rows
                self._bind(depth, group, side[group])

    def _make(self, entering: int, rows: int) -> None:
        """Make and bind the arrays for so many rows; a prompt's differ from call to call."""
        sizes = {"entering": entering, "going_on": 1 - entering, "rows": rows}
        self.held.make(small_inputs(self._architecture), sizes, small_outputs(self._architecture))
        self._shape = (entering, rows)

    def _bind(self, depth: int, group: int, planes: Planes) -> None:
        """Bind a group's planes at a depth, each layer's as input and as output."""
        if self._planes[depth - 1][group] is planes:
            return
        for index, layer in enumerate(self._groups[group]):
            for name, plane in zip(planes_of(layer, depth), planes, strict=True):
                self.held.bind_plane(name, plane[index])
        self._planes[depth - 1][group] = planes
