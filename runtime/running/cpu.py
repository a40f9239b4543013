"""The bundle's graph in onnxruntime: one call runs one sequence through some depths, or several through one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.contract import (
    OUTPUTS,
    STAYED,
    inputs_of,
    outputs_of,
    past_length,
    past_name,
)
from rrt_edge.runtime.bundle.kv_rules import KVRule
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.running.cpu_cache import KVCache, Planes, no_rows
from rrt_edge.runtime.running.cpu_calls import CPUCalls
from rrt_edge.runtime.running.cpu_runner import CPURunner
from rrt_edge.runtime.running.hidden import on_host
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.runner import NEVER, Call, Part, PartDone, Pass, stayed_of
from rrt_edge.runtime.system.closing import still_open
from rrt_edge.runtime.system.onnxruntime import onnxruntime

Float = NDArray[np.float32]
Int = NDArray[np.int64]
GATE = [tensor.name for tensor in OUTPUTS].index("gate")
_NO_SLOTS = np.zeros(0, np.int64)
_NO_THRESHOLDS = np.zeros(0, np.float32)


@lru_cache(maxsize=256, typed=True)
def _scalar(value: float) -> NDArray[Any]:
    """An int64 or float input; the same array for the same value, so that it is bound once."""
    return np.array(value, np.float32 if isinstance(value, float) else np.int64)


class Graph(CPURunner):
    """The loop graph, model.onnx: the `Runner` on the CPU that any bundle has.

    Raises:
        BundleError: onnxruntime does not load the graph, or it is not the graph the manifest describes.
    """

    def __init__(
        self,
        bundle: Path,
        architecture: Architecture,
        rule: KVRule,
        threads: int | None,
        context: int = 1,
        budget: KVBudget | None = None,
        mmap: bool = True,
    ) -> None:
        """
        Args:
            rule: the one the checkpoint was trained for.
            context: tokens a conversation may hold: it decides which frequencies rotate (LongRoPE).
            budget: what keys and values of all conversations may take.
            mmap: map the weights; else they are read.
        """
        super().__init__(bundle / "model.onnx", architecture, threads, context, budget, mmap, rule.projects)
        self._check_contract()
        self._no_hidden = np.zeros((1, 0, architecture.hidden_size), np.float32)
        self._no_ids = np.zeros((1, 0), np.int64)

    def bind(self) -> Binding:
        """A binding for one conversation; its cache stays bound between calls."""
        binding = Binding(self.session.io_binding(), self.architecture, self.path)
        self._closing.add(binding)
        return binding

    def run(self, binding: Binding, cache: KVCache, call: Call) -> Pass:
        """`Runner.run`, in one call of the graph: S rows, with F that left before them, bring N = F + S keys."""
        exited = self._no_hidden[0] if call.exited is None else on_host(call.exited)  # [F, H]
        rows = on_host(call.rows)  # ids [S] or hidden states [S, H]
        entering = rows.ndim == 1
        count = len(exited) + len(rows)  # N
        depths = range(1, len(cache.lengths) + 1)  # each depth's past is bound: the loop may run any of them
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": rows[None] if entering else self._no_ids,
            "hidden": self._no_hidden if entering else rows[None],
            "row_depth": np.full((1, count), call.first, np.int64),
            "position_ids": np.arange(call.position, call.position + count, dtype=np.int64)[None],
            "first": _scalar(call.first),
            "last": _scalar(call.last),
            "threshold": _scalar(float(call.threshold)),
            "logit_rows": np.array(call.logit_rows, np.int64),
            "slot_rows": _NO_SLOTS,
            "row_threshold": _NO_THRESHOLDS,
            **self._stayed([call]),
            **self._past_lengths([cache.valid_rows(depth) for depth in depths]),
            **self._exited(exited, _NO_SLOTS),
            **self.constant,
        }
        pasts = [self._buffers(cache, depth) for depth in depths]
        # logits [R, V], hidden [1, S, H], gate [depths, 1, S], planes [depths, 1, layers, KV, N, width]
        logit_count = len(feeds["logit_rows"])
        logits, hidden, gate, _, *planes = binding.run(
            self.session, feeds, pasts, logit_count, call.last - call.first + 1
        )
        ran = len(gate)  # depths that the graph's loop went through
        for index in range(ran):
            depth, new = call.first + index, [plane[index, 0] for plane in planes]
            binding.append(cache, depth, new, call.position)
        return Pass(
            call.first, call.first + ran - 1, logits, hidden[0], gate[-1, 0], tuple(gate[:, 0, -1:].ravel().tolist())
        )

    def step(self, binding: Binding, parts: Sequence[Part[KVCache]]) -> list[PartDone]:
        """`Runner.step`, in one call of the graph.

        The graph sees the rows of all parts as those of one text: the linears run over them once. Each part is a slot
        with a past of its own, over which its rows attend. The slots are sorted by depth, for token ids, which enter
        depth 1, stand before hidden states. With two slots that bring f1 and f2 rows that left and n1 and n2 rows:

            rows that queries, gates and hidden states have:              n1 n2   S = n1 + n2
            rows that keys, values, depths and positions have:      f1 f2 n1 n2   N = f1 + f2 + S
        """
        order = sorted(range(len(parts)), key=lambda index: parts[index].depth)
        slots = [parts[index] for index in order]
        ids = [on_host(part.rows) for part in slots if part.rows.ndim == 1]
        states = [on_host(part.rows) for part in slots if part.rows.ndim == 2]
        exited_states = [self._no_hidden[0] if part.exited is None else on_host(part.exited) for part in slots]
        exited_counts = [len(rows) for rows in exited_states]  # f1 f2
        counts = [len(part.rows) for part in slots]  # n1 n2
        depths = [part.depth for part in slots]
        # A slot's rows that left come first among its positions, the others right behind them.
        positions = [part.position + np.arange(exited) for part, exited in zip(slots, exited_counts, strict=True)]
        for part, exited, count in zip(slots, exited_counts, counts, strict=True):
            positions.append(part.position + exited + np.arange(count))
        feeds: dict[str, NDArray[Any]] = {
            "input_ids": np.concatenate(ids)[None] if ids else self._no_ids,
            "hidden": np.concatenate(states)[None] if states else self._no_hidden,
            "row_depth": np.repeat(depths + depths, exited_counts + counts)[None],  # [1, N]
            "position_ids": np.concatenate(positions)[None],  # [1, N]
            "first": _scalar(1),  # the loop runs once; each row's own depth is in row_depth
            "last": _scalar(1),
            "threshold": _scalar(NEVER),
            "logit_rows": _NO_SLOTS,
            "slot_rows": self._padded(counts),
            "row_threshold": np.concatenate([part.thresholds for part in slots]),  # [S]
            **self._stayed(slots),
            **self._past_lengths([part.cache.valid_rows(part.depth) for part in slots]),
            **self._exited(np.concatenate(exited_states), self._padded(exited_counts)),
            **self.constant,
        }
        pasts = [self._buffers(part.cache, part.depth) for part in slots]
        # logits [R, V] of the rows whose gate reached their threshold, hidden [1, S, H], gate [1, 1, S],
        # planes [1, 1, layers, KV, N, width]
        logits, hidden, gate, _, *planes = binding.run(self.session, feeds, pasts, None, 1)
        done: dict[int, PartDone] = {}
        row = exited_row = logit_row = 0  # where the slot's begin among S, F and R
        for index, part, count, exited in zip(order, slots, counts, exited_counts, strict=True):
            rows = slice(row, row + count)
            behind_exited = slice(sum(exited_counts) + row, sum(exited_counts) + row + count)
            for keys, position in ((slice(exited_row, exited_row + exited), 0), (behind_exited, exited)):
                new = [plane[0, 0, :, :, keys] for plane in planes]
                binding.append(part.cache, part.depth, new, part.position + position)
            reached = int((gate[0, 0, rows] >= part.thresholds).sum())
            done[index] = PartDone(hidden[0, rows], gate[0, 0, rows], logits[logit_row : logit_row + reached])
            row, exited_row, logit_row = row + count, exited_row + exited, logit_row + reached
        return [done[index] for index in range(len(parts))]

    def _exited(self, states: Float, slot_rows: Int) -> dict[str, NDArray[Any]]:
        if not self.propagates:
            return {}
        return {"left_hidden": states[None], "slot_left_rows": slot_rows}

    def _stayed(self, runs: Sequence[Call | Part[KVCache]]) -> dict[str, NDArray[Any]]:
        if self.architecture.looping.gate != "hazard":
            return {}
        return {STAYED.name: np.concatenate([stayed_of(run) for run in runs])[None]}

    def _padded(self, counts: Sequence[int]) -> Int:
        padded = np.zeros(self.architecture.pasts, np.int64)
        padded[: len(counts)] = counts
        return padded

    def _past_lengths(self, valid: Sequence[Sequence[int]]) -> dict[str, Int]:
        """Valid rows of each past, for each KV group."""
        groups = enumerate(zip(*valid, strict=True))
        return {past_length(group).name: self._padded(lengths)[None] for group, lengths in groups}

    def _buffers(self, cache: KVCache, depth: int) -> list[Planes]:
        return [cache.buffers(depth, group) for group in range(len(self.architecture.kv_groups))]

    def _check_contract(self) -> None:
        expected = {tensor.name: tensor for tensor in inputs_of(self.architecture, self.propagates)}
        inputs = {value.name: (value.type, tuple(value.shape)) for value in self.session.get_inputs()}
        wrong = [name for name in inputs if name not in expected]
        wrong += [name for name, tensor in expected.items() if inputs.get(name) != (tensor.onnx_type, tensor.shape)]
        outputs = {value.name: value.type for value in self.session.get_outputs()}
        wrong += [
            tensor.name for tensor in outputs_of(self.architecture) if outputs.get(tensor.name) != tensor.onnx_type
        ]
        if wrong:
            raise BundleError(f"{self.path}: is not the graph its manifest describes ({', '.join(wrong[:3])})")


class Binding:
    """Inputs and outputs bound for one caller: a past is bound again only where it has moved."""

    def __init__(self, binding: onnxruntime.IOBinding, architecture: Architecture, path: Path) -> None:
        self._io: onnxruntime.IOBinding | None = binding
        self._path, self._tensors = path, outputs_of(architecture)
        self._groups = architecture.kv_groups
        self._nothing = [no_rows(architecture, group) for group in range(len(self._groups))]
        self._planes = tuple(architecture.kv_planes)
        self._bound: list[list[NDArray[Any] | None]] = [[None] * len(self._groups) for _ in range(architecture.pasts)]
        self._fed: dict[str, NDArray[Any]] = {}
        self.calls = CPUCalls(path)

    def run(
        self,
        session: onnxruntime.InferenceSession,
        feeds: dict[str, NDArray[Any]],
        pasts: list[list[Planes]],
        logit_count: int | None,
        depths: int,
    ) -> list[Any]:
        """Run with `pasts`, planes [layers, 1, KV, P, width] by KV group, as the first and nothing as the others.

        Args:
            logit_count: rows of logits that come back; None where the gates decide.
            depths: that the loop may run at most.

        Raises:
            RRTEdgeError: onnxruntime failed, or took longer than a step may.
            BundleError: an output has another shape than the graph of a bundle gives.
        """
        empty: list[list[Planes]] = [[*self._nothing]] * (len(self._bound) - len(pasts))
        for index, groups in enumerate([*pasts, *empty]):
            for group, planes in enumerate(groups):
                self._bind(index, group, planes)
        for name, array in feeds.items():
            if self._fed.get(name) is not array:
                self.binding.bind_cpu_input(name, array)
                self._fed[name] = array
        for tensor in self._tensors:
            self.binding.bind_output(tensor.name)
        self.calls.run(session, self.binding, feeds["row_depth"].size)
        outputs: list[NDArray[Any]] = self.binding.copy_outputs_to_cpu()
        self._check_shapes(outputs, feeds, logit_count, depths)
        return outputs

    def _check_shapes(
        self, outputs: Sequence[NDArray[Any]], feeds: dict[str, NDArray[Any]], logit_count: int | None, depths: int
    ) -> None:
        """A graph may declare one shape and give another; what comes next relies on them."""
        rows = feeds["input_ids"].shape[1] + feeds["hidden"].shape[1]
        ran = min(max(outputs[GATE].shape[0], 1), depths) if outputs[GATE].ndim else 1
        sizes = {"batch": 1, "rows": rows, "key_rows": feeds["row_depth"].shape[1], "depths": ran}
        if logit_count is None:
            gate = outputs[GATE].ravel()
            logit_count = int((gate >= feeds["row_threshold"]).sum()) if len(gate) == rows else -1
        sizes["asked"] = logit_count
        for tensor, output in zip(self._tensors, outputs, strict=True):
            shape = tuple(size if isinstance(size, int) else sizes[size] for size in tensor.shape)
            if output.shape != shape:
                raise BundleError(
                    f"{self._path}: gives {tensor.name} the shape {list(output.shape)} where a bundle's graph gives "
                    f"{list(shape)}; export the bundle again"
                )

    def close(self) -> None:
        """Let go of all that is bound, and of the session with it."""
        self._io = None

    @property
    def binding(self) -> onnxruntime.IOBinding:
        return still_open(self._io)

    def append(self, cache: KVCache, depth: int, rows: Planes, position: int) -> None:
        """Add rows to a depth of a cache; where it grows, the old arrays of all depths go at once, wherever bound."""
        for group, nothing in enumerate(self._nothing):
            if not cache.takes(depth, group, rows[0].shape[2]):
                outgrown = {id(cache.buffers(each, group)[0]) for each in range(1, len(cache.lengths) + 1)}
                for past, bound in enumerate(self._bound):
                    if id(bound[group]) in outgrown:
                        self._bind(past, group, nothing)
        cache.append(depth, rows, position)

    def forget(self) -> None:
        """Hold no pasts any more."""
        for past in range(len(self._bound)):
            for group, nothing in enumerate(self._nothing):
                self._bind(past, group, nothing)

    def _bind(self, past: int, group: int, planes: Planes) -> None:
        if self._bound[past][group] is not planes[0]:
            for name, plane in zip(self._planes, planes, strict=True):
                for index, layer in enumerate(self._groups[group]):
                    self.binding.bind_cpu_input(past_name(name, past + 1, layer), plane[index])
            self._bound[past][group] = planes[0]
