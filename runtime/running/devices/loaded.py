"""A bundle's graphs on a device, loaded in one precision, with the tensors they work on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.device_graphs import ROWS, DeviceArchive
from rrt_edge.runtime.errors import DeviceError
from rrt_edge.runtime.running.devices.attention_check import MANY, rows_at_once
from rrt_edge.runtime.running.devices.device import OpenDevice
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.system.closing import Closing, closed
from rrt_edge.runtime.system.memory import return_unused

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, OrtValue

AT_ONCE = ("block", "head", "join", "grow")  # loaded at once; `step` when several sequences first share one
HEAVY = {"MatMulNBits", "MatMul", "GroupQueryAttention"}
DTYPES: dict[str, type[np.generic]] = {"float16": np.float16, "float32": np.float32}
log = logging.getLogger(__name__)


class LoadedGraphs:
    """The sessions of a bundle's graphs on a device, and copies to and from its memory.

    Attributes:
        dtype: what it computes with.
        most_rows: rows that a call may bring so that every kind of attention is right.
        closing: closes the caches, forks included, and the bindings that were made of it.
    """

    def __init__(
        self,
        archive: DeviceArchive,
        bundle: Path,
        architecture: Architecture,
        device: OpenDevice,
        precision: str,
        *,
        context: int,
        threads: int | None,
        budget: KVBudget,
        profile: Path | None,
    ) -> None:
        """
        Args:
            context: tokens a conversation may hold.
            budget: what keys and values of all conversations may take.
            precision: `float16` or `float32`.
            profile: where sessions write their profiles, as the beginning of the files' names.

        Raises:
            DeviceError: the device cannot run the bundle; says why.
            OutOfMemoryError: there is no room for it.
        """
        self.archive, self.architecture, self.device, self.precision = archive, architecture, device, precision
        self.dtype, self.context, self.budget = DTYPES[precision], context, budget
        self.slots, self.closing = archive.slots, Closing()
        self.host = OpenDevice("cpu")
        self._bundle, self._threads, self._profile = bundle, threads, profile
        self._sessions: dict[str, InferenceSession] = {}
        try:
            self.most_rows = self._checked_rows()
            self._sessions = {form: self._session(form) for form in AT_ONCE}
            self._sessions[ROWS] = self.host.session(archive.graphs[ROWS], bundle, threads)
            self._tell_taken()
        except BaseException:
            self.close()
            raise

    def _checked_rows(self) -> int:
        """Rows that a call may bring so that every kind of attention is right.

        Raises:
            DeviceError: not even few rows are.
        """
        most = []
        for number, attention in enumerate(self.archive.attentions):
            session = self._session(f"attend.{number}")
            most.append(rows_at_once(session, self.device, self.architecture, self.dtype, attention))
            if not most[-1]:
                raise DeviceError(f"device {self.device.name}: its attention is wrong{attention}; use the CPU")
        if min(most) < MANY:
            log.info("device %s: attention is right up to %d rows a call", self.device.name, min(most))
        return min(most)

    def _tell_taken(self) -> None:
        """Say what of the heavy work the device leaves to the CPU.

        Raises:
            DeviceError: all of it.
        """
        there, left = self.device.taken(self._sessions["block"])
        if self.device.name != "cpu" and not there & HEAVY:
            raise DeviceError(f"device {self.device.name}: takes no product of this model; use the CPU")
        if there and left & HEAVY:
            log.warning("device %s: the CPU runs %s of it", self.device.name, ", ".join(sorted(left & HEAVY)))

    def _session(self, form: str) -> InferenceSession:
        model = self.archive.graphs[f"{self.precision}/{form}"]
        profile = None if self._profile is None else self._profile.with_name(f"{self._profile.name}-{form}")
        return self.device.session(model, self._bundle, self._threads, profile)

    def row_shape(self, rows: int) -> tuple[int, int, int]:
        return self.architecture.key_value_heads, rows, self.architecture.head_dim

    def session(self, form: str) -> InferenceSession:
        """The session of a form, which is loaded where it was not yet."""
        if not self._sessions:
            raise closed()
        if form not in self._sessions:
            self._sessions[form] = self._session(form)
        return self._sessions[form]

    def close(self) -> None:
        """Give all memory back, that of caches and bindings too."""
        with self.device.lock:
            self.closing.close()
            self._sessions.clear()
            self.device.release()
        return_unused()

    def end_profiling(self) -> dict[str, Path]:
        """The files of the sessions' profiles, which end here, by form."""
        return {form: Path(session.end_profiling()) for form, session in self._sessions.items() if form != ROWS}

    def plane(self, rows: NDArray[Any]) -> OrtValue:
        """A copy of rows [1, KV, room, D] on the device."""
        return self.device.upload(rows)

    def download(self, plane: OrtValue) -> NDArray[Any]:
        """A copy of rows of the device on the host."""
        return self.device.download(plane)

    def grown(self, plane: OrtValue, room: int) -> OrtValue:
        """A copy with so many rows, of which the new ones are zeros."""
        with self.device.working():
            session = self.session("grow")
            made = self.device.empty((1, *self.row_shape(room)), self.dtype)
            binding = session.io_binding()
            binding.bind_ortvalue_input("kept", plane)
            binding.bind_cpu_input("pads", np.array([0, 0, 0, 0, 0, 0, room - plane.shape()[2], 0], np.int64))
            binding.bind_ortvalue_output("grown", made)
            self.device.run(session, binding)
            return made
