"""`ConvertOptions`: how a checkpoint becomes a recursive one; without torch, so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from rrt_edge.runtime.system.options import check_options, option

Init = Literal["average", "stepwise", "lower", "random"]
LoRAInit = Literal["svd", "zero"]
DType = Literal["source", "float32", "bfloat16", "float16"]


def read_rank(value: Any) -> float:
    """A rank as people write it: a whole number, or a share of full rank below 1."""
    number = float(value)
    return int(number) if number.is_integer() else number


@dataclass(frozen=True)
class ConvertOptions:
    """How to convert; `rrt_edge.convert` explains the fields.

    Raises:
        BadInputError: a value is not allowed; names the option.
    """

    loops: int = option(2, "Times the block is run; divides the layers.")
    init: Init = option(
        "average",
        "What the block starts from: the mean of the layers it replaces, evenly spaced layers, the first ones, noise.",
    )
    rank: float = option(
        0,
        "LoRA rank of each depth, or a share of full rank below 1; 0 shares without relaxation.",
        parse=read_rank,
        metavar="RANK",
    )
    lora_init: LoRAInit = option("svd", "What the adapters start from: the SVD of what sharing lost, or nothing.")
    trust_remote_code: bool = option(False, "Run configuration code that the checkpoint brings.")
    own_vectors: bool = option(False, "Give each depth norms and biases of its own.")
    dtype: DType = option("source", "How the weights are stored.")
    component_ranks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
