"""`ConvertOptions`: how a checkpoint becomes a recursive one; without torch, so that the command line starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rrt_edge.model.sharing import LOOPS, Order
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import check_options, option

Init = Literal["average", "stepwise", "lower", "random"]
LoRAInit = Literal["svd", "output", "zero"]
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

    loops: int | None = option(
        None, "Times the block is run; divides the layers.", unset=f"{LOOPS}, or those of a looped model"
    )
    init: Init = option(
        "average",
        "What the block starts from: the mean of the layers it replaces, evenly spaced layers, the first ones, noise.",
    )
    order: Order = option(
        "consecutive",
        "Which layers a loop stands for: the first loop for the first half of two and so on, which is the source's own "
        "order, or interleaved: for every other one, so that it learns soon to answer alone.",
    )
    rank: float = option(
        0,
        "LoRA rank of each depth, or a share of full rank below 1; 0 shares without relaxation.",
        parse=read_rank,
        metavar="RANK",
    )
    parameters: float | None = option(
        None,
        "How many parameters the result may have, as a share of the source's, in place of a rank: attention, keys and "
        "values, and feed-forward layers get ranks by what each rank brings back.",
        above=0,
        most=1,
        unset="as many as the rank makes",
        metavar="SHARE",
    )
    data: Path | None = option(
        None,
        "A few dozen texts or chats (.jsonl, .txt, .parquet): the adapters start where their layers' output on them "
        "loses least, and each depth has norms and biases of its own.",
    )
    data_tokens: int = option(16384, "Tokens of the data that are read, at most 512 of a text.", least=1)
    lora_init: LoRAInit | None = option(
        None,
        "What the adapters start from: the SVD of what sharing lost of the weights, or of their output on the data; "
        "or nothing.",
        unset="output with --data, else svd",
    )
    trust_remote_code: bool = option(False, "Run configuration code that the checkpoint brings.")
    own_vectors: bool | None = option(
        None,
        "Give each depth norms and biases of its own.",
        unset="own with --data, else shared",
        flag="own-vectors/shared-vectors",
    )
    dtype: DType = option("source", "How the weights are stored.")
    component_ranks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self)
        if self.parameters is not None and (self.rank or self.component_ranks):
            raise BadInputError(f"parameters {self.parameters}: chooses the ranks itself; leave out one of them")
        if (self.data is not None) != (self.adapters == "output"):
            raise BadInputError(
                f"lora-init {self.adapters}: "
                + ("goes without data; leave out one of them" if self.data else "needs texts; give them with --data")
            )

    @property
    def adapters(self) -> LoRAInit:
        """What the adapters start from."""
        return self.lora_init or ("svd" if self.data is None else "output")

    @property
    def owns_vectors(self) -> bool:
        """Whether each depth has norms and biases of its own."""
        return self.data is not None if self.own_vectors is None else self.own_vectors
