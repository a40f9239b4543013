"""How far two texts are the same."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of tokens with which both texts begin."""
    if first == second[: len(first)]:  # at once: by far the most frequent
        return len(first)
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (left, right) in pairs if left != right), min(len(first), len(second)))
