"""What a bundle's manifest says of the bits of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rrt_edge.runtime.bundle.manifest_reader import Fields

WEIGHT_BITS = (4, 8, 16, 32)
MOST_LAYERS = 1024  # of a block


@dataclass(frozen=True)
class Quantization:
    """Bits of the weights, as asked for and part by part; `block_size` weights share a scale.

    `smaller_blocks`: the sizes of blocks in matrices whose rows are not of so many, where there are such. `eight_bit`:
    where some of the block's matrices have 8 bits and the others fewer, the numbers of their layers by kind.
    """

    bits: int
    block_size: int
    parts: dict[str, int]
    smaller_blocks: tuple[int, ...] | None = None
    eight_bit: dict[str, list[int]] | None = None

    @classmethod
    def read(cls, fields: Fields) -> Quantization:
        """
        Raises:
            BundleError: a field is missing or out of bounds.
        """
        bits, parts = fields.count("bits", 1, 32), fields.counts("parts", 32)
        unknown = sorted({bits, *parts.values()} - set(WEIGHT_BITS))
        if unknown:
            known = ", ".join(map(str, WEIGHT_BITS))
            raise fields.fail("quantization", f"has {unknown[0]} bits, which is not known; known: {known}")
        block_size = fields.count("block_size", 16, 256)
        smaller, raised = fields.get("smaller_blocks"), fields.get("eight_bit")
        if smaller is not None and not _are_numbers(smaller, 16, block_size - 1):
            raise fields.fail("smaller_blocks", f"must be a list of sizes from 16 to below {block_size}, or null")
        if raised is not None:
            lists = raised.values() if isinstance(raised, dict) else [None]
            if not all(_are_numbers(layers, 0, MOST_LAYERS) for layers in lists):
                raise fields.fail("eight_bit", "must be lists of the numbers of layers by kind of matrix, or null")
        return cls(bits, block_size, parts, None if smaller is None else tuple(smaller), raised)


def _are_numbers(value: Any, least: int, most: int) -> bool:
    return isinstance(value, list) and all(type(number) is int and least <= number <= most for number in value)
