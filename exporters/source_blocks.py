"""The matrices of a GGUF file for a bundle: in its own blocks where onnxruntime's kernels can say them exactly."""

from __future__ import annotations

import logging
from collections import Counter

from rrt_edge.conversion.block import EMBEDDING
from rrt_edge.conversion.converted import Converted
from rrt_edge.conversion.gguf_header import GgufHeader
from rrt_edge.conversion.naming import HEAD
from rrt_edge.quantisation.blocks import quantize
from rrt_edge.quantisation.ggml import carried
from rrt_edge.quantisation.packing import is_packed
from rrt_edge.quantisation.plan import Bits
from rrt_edge.quantisation.wide import Matrix

log = logging.getLogger(__name__)
ROUNDED = 8  # bits of what cannot be carried over
FEWER_BITS = {"Q4_0": 4}  # GGML's types that keep fewer


class SourceBlocks:
    """Reads matrices as they are stored, and keeps count of those that had to be rounded again, to 8 bits."""

    def __init__(self, weights: Converted, header: GgufHeader) -> None:
        self._weights, self._path = weights, header.path
        kinds = {tensor.type for tensor in header.tensors.values() if len(tensor.shape) > 1}
        floats = kinds & {"F32", "F16", "BF16", "F64"}
        self.float_bits = 16 if floats == {"F16"} else 32
        self._rounded: Counter[str] = Counter()
        self._bits: set[int] = set()

    def matrix(self, name: str) -> Matrix:
        """A matrix by its name in the recursive model."""
        blocks = self._weights.blocks(name)
        if blocks is None:
            self._bits.add(self.float_bits)
            return self._weights.tensor(name).numpy()
        kept = carried(blocks.type, blocks.data)
        if kept is None:
            self._rounded[blocks.type] += 1
            kept = quantize(self._weights.tensor(name).numpy(), ROUNDED)
        self._bits.add(kept.bits)
        return kept

    def bits_of(self, name: str) -> int:
        """The bits that a matrix gets, which is not read."""
        kind = self._weights.block_type(name)
        return self.float_bits if kind is None else FEWER_BITS.get(kind, ROUNDED)

    def plan(self, tied_head: bool) -> Bits:
        """The bits of what stands around the block, and of matrices of the block that are not in blocks."""
        embedded = self.bits_of(EMBEDDING)
        return Bits(self.float_bits, self.float_bits, embedded, embedded if tied_head else self.bits_of(HEAD))

    def written(self, plan: Bits) -> Bits:
        """The same once all is read: the block's are the fewest bits of any matrix. Says what was rounded."""
        if self._rounded:
            counts = ", ".join(f"{count} of {kind}" for kind, count in sorted(self._rounded.items()))
            why = "which onnxruntime's blocks cannot say exactly"
            log.warning(f"{self._path}: {counts}, {why}, are rounded once more, to {ROUNDED} bits")
        block = min(self._bits)
        lora = block if is_packed(block) else plan.lora
        return Bits(block, lora, plan.embedding, plan.head)
