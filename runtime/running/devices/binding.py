"""A device's sessions bound for one caller: keys and values are bound again only where they have moved."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

from rrt_edge.runtime.running.devices.cache import Buffer
from rrt_edge.runtime.running.devices.loaded import LoadedGraphs

if TYPE_CHECKING:
    from onnxruntime import IOBinding


class BoundBlock:
    """A binding of the block: the planes of each slot are the same memory before and after."""

    def __init__(self, binding: IOBinding, slots: int) -> None:
        self.io = binding
        self._bound: list[weakref.ref[Buffer] | None] = [None] * slots  # weak: an ended sequence's count as given back

    def cache(self, slot: int, buffer: Buffer) -> None:
        """Bind the buffer of a slot, counted from 1."""
        bound = self._bound[slot - 1]
        if bound is not None and bound() is buffer:
            return
        for index, plane in enumerate(buffer.planes):
            where = f"{('key', 'value')[index % 2]}.{slot}.{index // 2}"
            self.io.bind_ortvalue_input(f"past_{where}", plane)
            self.io.bind_ortvalue_output(f"present_{where}", plane)
        self._bound[slot - 1] = weakref.ref(buffer)


class DeviceBinding:
    """One caller's bindings: of the block one for each depth, so that a sequence's stay as they are."""

    def __init__(self, graphs: LoadedGraphs) -> None:
        self._graphs = graphs
        self._blocks: dict[tuple[str, int], BoundBlock] = {}
        self._head: IOBinding | None = None

    def block(self, form: str, depth: int) -> BoundBlock:
        """Return the binding of the block for one sequence at a depth, or of the step for several sequences."""
        key = (form, depth if form == "block" else 0)
        if key not in self._blocks:
            slots = 1 if form == "block" else self._graphs.slots
            self._blocks[key] = BoundBlock(self._graphs.session(form).io_binding(), slots)
        return self._blocks[key]

    @property
    def head(self) -> IOBinding:
        if self._head is None:
            self._head = self._graphs.session("head").io_binding()
        return self._head

    def close(self) -> None:
        """Let go of all that is bound."""
        self._blocks.clear()
        self._head = None
