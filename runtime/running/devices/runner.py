"""The block on a device, driven depth by depth from the host: hidden states, keys and values stay on the device.

Only the gate comes back at each depth, and the logits that are asked for. The graphs are in the bundle's archive of
them (docs/graph.md).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.device_graphs import PRECISIONS, ROWS, read_archive
from rrt_edge.runtime.bundle.kv_rules import EXACT, KV_RULES, KVRule
from rrt_edge.runtime.errors import DeviceError, OutOfMemoryError, RRTEdgeError
from rrt_edge.runtime.running.devices.binding import DeviceBinding
from rrt_edge.runtime.running.devices.cache import Buffer, DeviceCache, buffer_bytes, room_of
from rrt_edge.runtime.running.devices.device import OpenDevice
from rrt_edge.runtime.running.devices.loaded import LoadedGraphs
from rrt_edge.runtime.running.hidden import DeviceRows, Piece
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.runner import NEVER, Call, Part, PartDone, Pass, stayed_of

if TYPE_CHECKING:
    from onnxruntime import IOBinding, OrtValue

Float = NDArray[np.float32]
Int = NDArray[np.int64]
log = logging.getLogger(__name__)


class DeviceGraph:
    """A bundle on a device, shared by every conversation: the `Runner` of the KV rule `exact`."""

    rules = tuple(rule for rule in KV_RULES.values() if rule.on_devices)

    def __init__(
        self,
        bundle: Path,
        architecture: Architecture,
        device: OpenDevice,
        *,
        context: int = 1,
        threads: int | None = None,
        budget: KVBudget | None = None,
        precision: str | None = None,
        profile: Path | None = None,
    ) -> None:
        """
        Args:
            context: tokens a conversation may hold: it decides which frequencies rotate (LongRoPE).
            budget: what keys and values of all conversations may take.
            precision: `float16` or `float32`; by default the first that the device computes with.
            profile: where sessions write their profiles, as the beginning of the files' names.

        Raises:
            DeviceError: the device cannot run the bundle; says why.
            BundleError: the archive of graphs is damaged.
        """
        self.architecture, self.device, self.budget = architecture, device, budget or KVBudget()
        archive = read_archive(bundle)
        self.slots = archive.slots
        short = architecture.short_context
        self._constant = {} if short is None else {"long_context": np.array(context > short)}
        self._scratch: Buffer | None = None
        self._step_fits = True
        halves = device.keeps_memory and not archive.overflows_float16
        precisions = [precision] if precision else PRECISIONS if halves else ["float32"]
        with device.lock:
            for number, chosen in enumerate(precisions, 1):
                try:
                    self.graphs = LoadedGraphs(
                        archive, bundle, architecture, device, chosen,
                        context=context, threads=threads, budget=self.budget, profile=profile,
                    )  # fmt: skip
                    self.most_rows = self.graphs.most_rows
                    self._try_a_token()
                    log.info("device %s: %s computes in %s", device.name, bundle, chosen)
                    return
                except OutOfMemoryError:
                    raise
                except RRTEdgeError as error:
                    log.info("device %s: not in %s: %s", device.name, chosen, error)
                    if number == len(precisions):
                        raise error if isinstance(error, DeviceError) else DeviceError(str(error)) from error

    def _try_a_token(self) -> None:
        """
        Raises:
            RRTEdgeError: onnxruntime failed, or the logits are no numbers; nothing is held any more.
        """
        try:
            binding, cache = self.bind(), self.new_cache()
            call = Call(np.zeros(1, np.int64), 0, 1, self.architecture.loops, logit_rows=[0])
            tried = self.run(binding, cache, call)
            cache.close()
            if not np.isfinite(tried.logits).all():
                raise RRTEdgeError(f"device {self.device.name}: computes no numbers in {self.precision}")
        except BaseException:
            self.close()
            raise

    @property
    def has_hazard(self) -> bool:
        """Whether the gate is one of leaving at a depth, of rows that have come to it."""
        return self.architecture.looping.gate == "hazard"

    @property
    def precision(self) -> str:
        """`float16` or `float32`."""
        return self.graphs.precision

    def end_profiling(self) -> dict[str, Path]:
        """The files of the sessions' profiles, which end here, by form."""
        return self.graphs.end_profiling()

    @property
    def bits(self) -> int:
        return 8 * np.dtype(self.graphs.dtype).itemsize

    @property
    def no_rows(self) -> DeviceRows:
        return DeviceRows(self.device.download, self.architecture.hidden_size)

    def new_cache(self, rule: KVRule = EXACT) -> DeviceCache:
        return DeviceCache(self.graphs)

    def hidden(self, rows: Float) -> DeviceRows:
        if not len(rows):
            return self.no_rows
        return self._rows([Piece(self.device.upload(rows[None].astype(self.graphs.dtype)), 0, len(rows))])

    def _rows(self, pieces: Sequence[Piece]) -> DeviceRows:
        return DeviceRows(self.device.download, self.architecture.hidden_size, pieces)

    def kv_bytes(self, tokens: int, rule: KVRule = EXACT) -> int:
        """Return the bytes of a cache with its spare room, in the precision that the device computes with."""
        room = min(room_of(tokens), room_of(max(tokens, self.graphs.context), 0))
        return self.architecture.loops * buffer_bytes(self.architecture, room, self.graphs.dtype)

    def bind(self) -> DeviceBinding:
        """Return a binding for one caller at a time, whose keys and values stay bound between calls."""
        binding = DeviceBinding(self.graphs)
        self.graphs.closing.add(binding)
        return binding

    def close(self) -> None:
        """Give all memory back; conversations cannot go on."""
        self._scratch = None
        self.graphs.close()

    def _dummy(self) -> Buffer:
        """Keys and values of one row, which nobody reads, for slots without a sequence."""
        if self._scratch is None:
            nothing = np.zeros((1, *self.graphs.row_shape(1)), self.graphs.dtype)
            pair = [self.graphs.plane(nothing) for _ in range(2)]  # WebGPU refuses to write both into one memory
            self._scratch = Buffer(pair * self.architecture.layers_per_block, 1)
        return self._scratch

    def run(self, binding: DeviceBinding, cache: DeviceCache, call: Call) -> Pass:
        """`Runner.run`, a call for each depth; the gate is waited for only where it decides or is the last."""
        rows, stayed = call.rows, stayed_of(call)
        decides = call.threshold < NEVER or self.has_hazard  # which of a depth needs those of all before it
        gates: list[float] = []
        with self.device.working():
            for depth in range(call.first, call.last + 1):
                part = Part(cache, depth, rows, call.position, np.zeros(0, np.float32), stayed=stayed)
                hidden, gate = self._through(binding, part, depth == call.last or decides)
                rows, stayed = hidden, 1 - gate
                gates += gate[-1:].tolist()
                if depth == call.last or gate[-1] >= call.threshold:
                    break
            logits = self._logits(binding, hidden, np.array(call.logit_rows, np.int64))
        return Pass(call.first, depth, logits, hidden, gate, tuple(gates) if len(gates) > depth - call.first else ())

    def _through(self, binding: DeviceBinding, part: Part[DeviceCache], wants_gate: bool) -> tuple[DeviceRows, Float]:
        """Run one part through its depth, as many rows a call as attention is right for."""
        rows, gates = self.no_rows, []
        for start in range(0, len(part.rows), self.most_rows):
            piece = dataclasses.replace(
                part,
                rows=part.rows[start : start + self.most_rows],
                position=part.position + start,
                stayed=None if part.stayed is None else part.stayed[start : start + self.most_rows],
            )
            hidden, gate = self._call("block", binding, [piece], wants_gate)
            rows = self._rows([*rows.pieces, Piece(hidden, 0, len(piece.rows))])
            gates.append(gate)
        return rows, np.concatenate(gates)

    def step(self, binding: DeviceBinding, parts: Sequence[Part[DeviceCache]]) -> list[PartDone]:
        """`Runner.step`, in one call where that is not too many rows."""
        with self.device.working():
            wants_gate = any((part.thresholds < NEVER).any() for part in parts)
            if len(parts) == 1 or any(len(part.rows) > self.most_rows for part in parts) or not self._shares():
                results = [self._through(binding, part, wants_gate) for part in parts]
            else:
                hidden, gates = self._call("step", binding, parts, wants_gate)
                ends = np.cumsum([len(part.rows) for part in parts]).tolist()
                spans = [(end - len(part.rows), end) for end, part in zip(ends, parts, strict=True)]
                results = [(self._rows([Piece(hidden, *span)]), gates[slice(*span)]) for span in spans]
            reached = [gate >= part.thresholds for (_, gate), part in zip(results, parts, strict=True)]
            logits = self._logits(
                binding,
                self._rows([piece for rows, _ in results for piece in rows.pieces]),
                np.flatnonzero(np.concatenate(reached)),
            )
        answered = np.split(logits, np.cumsum([int(ones.sum()) for ones in reached])[:-1])
        return [PartDone(rows, gate, own) for (rows, gate), own in zip(results, answered, strict=True)]

    def _shares(self) -> bool:
        """Whether the device has room for the graph that several sequences share; without it they take turns."""
        try:
            if self._step_fits:
                self.graphs.session("step")
        except OutOfMemoryError as error:
            log.warning("%s; requests take turns", error)
            self._step_fits = False
        return self._step_fits

    def _call(
        self, form: str, binding: DeviceBinding, parts: Sequence[Part[DeviceCache]], wants_gate: bool
    ) -> tuple[OrtValue, Float]:
        """Run parts through their depths: (hidden states [1, N, H] on the device, gates [N], of padding too)."""
        shape, session = self.architecture, self.graphs.session(form)
        slots = 1 if form == "block" else self.slots
        counts = [len(part.rows) for part in parts] + [1] * (slots - len(parts))  # a slot without a part has a dummy
        bound = binding.block(form, parts[0].depth)
        buffers = [part.cache.room_for(part.depth, len(part.rows)) for part in parts]
        entering = self._enter(parts, counts)
        for name in ("depth", "cos", "sin", *(f"turn.{number}" for number in range(self.graphs.archive.turns))):
            bound.io.bind_cpu_input(name, entering[name])
        if slots > 1:
            bound.io.bind_cpu_input("slot_rows", np.array(counts, np.int64))
        ids = 0
        for slot, count in enumerate(counts, 1):
            part = parts[slot - 1] if slot <= len(parts) else None
            before = 0 if part is None else len(part.cache.positions[part.depth - 1])
            bound.io.bind_cpu_input(f"last_row.{slot}", np.array([before + count - 1], np.int32))
            bound.io.bind_cpu_input(f"length.{slot}", np.array(before + count, np.int32))
            bound.cache(slot, self._dummy() if part is None else buffers[slot - 1])
            if part is None:
                self._bind_rows(bound.io, slot, np.zeros((1, 1, shape.hidden_size), self.graphs.dtype))
            elif isinstance(part.rows, DeviceRows):
                self._bind_rows(bound.io, slot, self._whole(part.rows))
            else:
                embedded = entering["embedded"][:, ids : ids + count].astype(self.graphs.dtype)
                self._bind_rows(bound.io, slot, embedded)
                ids += count
        hidden = self.device.empty((1, sum(counts), shape.hidden_size), self.graphs.dtype)
        bound.io.bind_ortvalue_output("hidden_out", hidden)
        open_depth = any(part.depth < shape.loops for part in parts)  # full depth's gate is 1
        gates = self._gates(sum(counts), wants_gate and open_depth)
        bound.io.bind_ortvalue_output("gate", gates)
        self.device.run(session, bound.io)
        for part in parts:
            part.cache.add(part.depth, len(part.rows), part.position)
        if not (wants_gate and open_depth):
            return hidden, np.ones(sum(counts), np.float32)
        gate: Float = gates.numpy()[0]
        if self.has_hazard:  # of each depth alone: those before it are known here
            stayed = np.concatenate([stayed_of(part) for part in parts])
            gate[: len(stayed)] = 1 - stayed * (1 - gate[: len(stayed)])
        return hidden, gate

    def _gates(self, count: int, read: bool) -> OrtValue:
        """Return the tensor for the gates, on the host where they are read there."""
        if read or not self.device.keeps_memory:
            return self.device.host((1, count), np.float32)
        return self.device.empty((1, count), np.float32)

    def _enter(self, parts: Sequence[Part[DeviceCache]], counts: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Embedded ids, rotations and depths from the rows graph; rows of slots without a part are at position 0."""
        ids = [part.rows for part in parts if isinstance(part.rows, np.ndarray)]
        depths = [part.depth for part in parts] + [1] * (len(counts) - len(parts))
        starts = [part.position for part in parts] + [0] * (len(counts) - len(parts))
        feeds = {
            "input_ids": np.concatenate([*ids, np.zeros(0, np.int64)])[None],
            "row_depth": np.repeat(depths, counts)[None],
            "position_ids": np.concatenate([np.arange(at, at + n) for at, n in zip(starts, counts, strict=True)])[None],
            **self._constant,
        }
        return self.graphs.host.call(self.graphs.session(ROWS), feeds)

    def _whole(self, rows: DeviceRows) -> Piece:
        """Rows as part of one tensor."""
        whole = rows.pieces[0]
        for piece in rows.pieces[1:]:
            session = self.graphs.session("join")
            made = self.device.empty((1, len(whole) + len(piece), self.architecture.hidden_size), self.graphs.dtype)
            binding = session.io_binding()
            for number, part in ((1, whole), (2, piece)):
                self._bind_rows(binding, number, part)
            binding.bind_ortvalue_output("joined", made)
            self.device.run(session, binding)
            whole = Piece(made, 0, len(whole) + len(piece))
        return whole

    def _bind_rows(self, binding: IOBinding, number: int, rows: Piece | NDArray[Any]) -> None:
        if isinstance(rows, Piece):
            binding.bind_ortvalue_input(f"hidden.{number}", rows.tensor)
            span = (rows.start, rows.stop)
        else:
            binding.bind_cpu_input(f"hidden.{number}", rows)
            span = (0, rows.shape[1])
        binding.bind_cpu_input(f"rows.{number}", np.array(span, np.int64))

    def _logits(self, binding: DeviceBinding, rows: DeviceRows, numbers: Int) -> Float:
        """Logits [R, V] of some of the rows, by their ascending numbers."""
        parts, before = [np.zeros((0, self.architecture.vocabulary), np.float32)], 0
        for tensor, pieces in groupby(rows.pieces, key=lambda piece: piece.tensor):
            places = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
            own = places[numbers[(numbers >= before) & (numbers < before + len(places))] - before]
            before += len(places)
            if len(own):
                logits = self.device.host((len(own), self.architecture.vocabulary), np.float32)
                binding.head.bind_ortvalue_input("hidden", tensor)
                binding.head.bind_cpu_input("rows", own)
                binding.head.bind_ortvalue_output("logits", logits)
                self.device.run(self.graphs.session("head"), binding.head)
                parts.append(logits.numpy())
        return np.concatenate(parts)
