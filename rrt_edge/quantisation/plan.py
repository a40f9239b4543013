"""How many bits each part of a model gets: what export writes and what training rounds to, said once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from rrt_edge.quantisation.blocks import BLOCK, fitting_block, pad_to_block
from rrt_edge.quantisation.packing import is_packed

Part = Literal["block", "lora", "embedding", "head"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True)
class Format:
    """How a matrix is stored: in 4 or 8 bits, `block` weights with a scale each, or in floats of 16 or 32 bits."""

    bits: int
    block: int = BLOCK

    @property
    def packed(self) -> bool:
        return is_packed(self.bits)

    def blocks(self, shape: tuple[int, int]) -> tuple[int, int]:
        """The scales of a matrix [out, in]: [out, blocks]."""
        return shape[0], pad_to_block(shape[1], self.block) // self.block

    def bytes(self, shape: tuple[int, int]) -> int:
        """What a matrix [out, in] takes, scales in float32 included."""
        if not self.packed:
            return shape[0] * shape[1] * self.bits // 8
        outputs, blocks = self.blocks(shape)
        return outputs * blocks * (self.block * self.bits // 8 + 4)


@dataclass(frozen=True)
class Bits:
    """Bits of each part's weights: 4, 8, 16 or 32. A LoRA's B stands in the block's matrices and has their bits.

    `block_size` weights share a scale, or fewer where the rows of a matrix are not of so many (`fitting_block`).
    `eight_bit` names those units of the block (`rrt_edge.exporters.units`) that have 8 bits whatever the others have.
    """

    block: int
    lora: int
    embedding: int
    head: int
    block_size: int = BLOCK
    eight_bit: frozenset[str] = frozenset()

    def of_unit(self, unit: str) -> int:
        """The bits of a unit of the block."""
        return 8 if unit in self.eight_bit else self.block

    def format(self, bits: int, columns: int) -> Format:
        """How a matrix of so many bits is stored whose rows, without adapters, are `columns` long."""
        return Format(bits, fitting_block(columns, self.block_size))


def bits_by_part(bits: int, eight_bit: Sequence[Part] | None, tied_head: bool, block_size: int) -> Bits:
    """The bits of each part.

    Args:
        eight_bit: parts kept at 8 bits; None: where the rest has fewer, an embedding that is the head as well. Where
            the two are one matrix, either name means both: one matrix is smaller than two, and nearer.
    """
    by_default: Sequence[Part] = ("embedding", "head") if bits < 8 and tied_head else ()
    kept = set(by_default if eight_bit is None else eight_bit)
    if tied_head and kept & {"embedding", "head"}:
        kept |= {"embedding", "head"}
    block, lora, embedding, head = (8 if part in kept else bits for part in PARTS)
    return Bits(block, lora, embedding, head, block_size)


def packs_embedding(hidden: int, bits: int) -> bool:
    """Whether the embedding is stored in blocks: GatherBlockQuantized takes whole blocks only."""
    return is_packed(bits) and hidden % BLOCK == 0
