"""What runners on the CPU share: a session over one of a bundle's graphs, and caches in the system's memory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrt_edge.runtime.bundle.architecture import Architecture
from rrt_edge.runtime.bundle.contract import LONG_CONTEXT, GraphTensor
from rrt_edge.runtime.bundle.kv_rules import EXACT, KV_RULES, KVRule
from rrt_edge.runtime.errors import BundleError
from rrt_edge.runtime.running.cpu_cache import KVCache
from rrt_edge.runtime.running.kv_budget import KVBudget
from rrt_edge.runtime.running.weight_file import open_session
from rrt_edge.runtime.system.closing import Closing, still_open
from rrt_edge.runtime.system.memory import return_unused
from rrt_edge.runtime.system.onnxruntime import first_line, onnxruntime, session_options

Float = NDArray[np.float32]


class CPURunner:
    """One onnxruntime session over a graph, shared by every conversation; `constant` are inputs that never change.

    Raises:
        BundleError: onnxruntime does not load the graph.
    """

    bits = 32
    most_rows = sys.maxsize

    def __init__(
        self,
        path: Path,
        architecture: Architecture,
        threads: int | None,
        context: int,
        budget: KVBudget | None,
        mmap: bool,
        propagates: bool = False,
    ) -> None:
        """
        Args:
            path: of the graph.
            context: tokens a conversation may hold: it decides which frequencies rotate (LongRoPE).
            budget: what keys and values of all conversations may take.
            mmap: map the weights; else they are read.
            propagates: whether the graph has the inputs of rows that propagate.
        """
        self.path, self.architecture, self.budget = path, architecture, budget or KVBudget()
        self.slots, self.propagates = architecture.pasts, propagates
        short = architecture.short_context
        self.constant: dict[str, NDArray[Any]] = {} if short is None else {LONG_CONTEXT.name: np.array(context > short)}
        try:
            session = open_session(path, session_options(threads), mmap)
        except Exception as error:  # onnxruntime raises several unrelated types
            raise BundleError(f"{path}: onnxruntime cannot load it ({first_line(error)})") from error
        self._session: onnxruntime.InferenceSession | None = session
        self._closing = Closing()

    def check_contract(self, inputs: Sequence[GraphTensor], outputs: Sequence[GraphTensor]) -> None:
        """
        Raises:
            BundleError: the graph has not these inputs, or not these outputs of these types.
        """
        expected = {tensor.name: (tensor.onnx_type, tensor.shape) for tensor in inputs}
        actual = {value.name: (value.type, tuple(value.shape)) for value in self.session.get_inputs()}
        results = {tensor.name: tensor.onnx_type for tensor in outputs}
        made = {value.name: value.type for value in self.session.get_outputs()}
        wrong = [name for name in {**expected, **actual} if expected.get(name) != actual.get(name)]
        wrong += [name for name in {**results, **made} if results.get(name) != made.get(name)]
        if wrong:
            raise BundleError(f"{self.path}: is not the graph its manifest describes ({', '.join(wrong[:3])})")

    @property
    def session(self) -> onnxruntime.InferenceSession:
        return still_open(self._session)

    @property
    def rules(self) -> tuple[KVRule, ...]:
        """All, but those whose inputs the graph lacks."""
        return tuple(rule for rule in KV_RULES.values() if self.propagates or not rule.projects)

    @property
    def no_rows(self) -> Float:
        return np.zeros((0, self.architecture.hidden_size), np.float32)

    def new_cache(self, rule: KVRule = EXACT) -> KVCache:
        return KVCache(self.architecture, self.budget, self._closing, rule)

    def hidden(self, rows: Float) -> Float:
        return rows

    def kv_bytes(self, tokens: int, rule: KVRule = EXACT) -> int:
        return self.architecture.kv_bytes(tokens, rule)

    def close(self) -> None:
        self._closing.close()
        self._session = None
        return_unused()
