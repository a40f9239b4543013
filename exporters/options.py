"""`ExportOptions`: how a checkpoint becomes a bundle; without torch and onnx, so that the command line starts fast."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rrt_edge.conversion.options import Init
from rrt_edge.model.sharing import LOOPS, loops_of, own_loops
from rrt_edge.quantisation.blocks import BLOCK, SIZES
from rrt_edge.quantisation.plan import Part
from rrt_edge.runtime.bundle.architecture import KV_BITS
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.options import check_options, option

WeightBits = Literal[4, 8, 16, 32]
SOURCE: Literal["source"] = "source"  # the blocks of a GGUF file are kept
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
BLOCK_SIZES, BLOCK_SIZE = SIZES, BLOCK  # weights that share a scale: what can be, and what is by default
ExportBits = Literal[4, 8, 16, 32, "source"]


def _bytes(value: Any) -> int:
    """A number of bytes, of a number or a text such as 120MB; raises ValueError where it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *(kB|MB|GB|)", str(value).strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(f"{value} is no size")
    return int(float(match[1]) * UNITS[match[2].upper()])


@dataclass(frozen=True)
class ExportOptions:
    """How to export; `rrt_edge.export` explains the fields.

    Raises:
        BadInputError: a value is not allowed; names the option.
    """

    bits: ExportBits | None = option(
        None,
        "Bits of the weights; source: as a GGUF file has them, with --loops 1.",
        unset="4; 8 for a looped model, whose errors come back in every loop",
    )
    eight_bit: tuple[Part, ...] | None = option(
        None,
        "Keep a part at 8 bits where the rest has 4; may be repeated; none: all at 4, a tied embedding too.",
        unset="a tied embedding and head",
    )
    block_size: int | None = option(
        None,
        "Weights of 4 or 8 bits that share a scale; larger blocks are smaller and faster, and lose a little more.",
        choices=BLOCK_SIZES,
        unset=f"what the checkpoint was trained with, or {BLOCK_SIZE}",
    )
    loops: int | None = option(
        None, "For a source that is not recursive; 1: unshared.", unset=f"{LOOPS}, or those of a looped model"
    )
    init: Init = option("average", "What the block starts from, for a source that is not recursive.")
    rank: int = option(0, "For a source that is not recursive.")
    data: Path | None = option(
        None,
        "A few dozen texts or chats (.jsonl, .txt, .parquet): the block's matrices are rounded so that the layers' "
        "output on them loses least.",
    )
    data_tokens: int = option(16384, "Tokens of the data that are read, at most 512 of a text.", least=1)
    repair_rank: int = option(
        0,
        "With --data, for a model without adapters: the rank of some at each depth that take up what rounding lost. "
        "Adapters that a model has are fitted anew.",
        least=0,
    )
    max_size: int | None = option(
        None,
        "The bundle's whole size, as 120MB: 8 bits go where 4 cost most on the data, as far as it reaches.",
        least=1,
        parse=_bytes,
        metavar="SIZE",
    )
    kv_bits: int = option(
        32, "How keys and values are kept while running; 8: a quarter of the memory.", choices=KV_BITS
    )
    merge_adapters: bool = option(
        False,
        "Give each depth weights of its own, its adapters in them: faster for small models, in more bytes and memory; "
        "no loop makes drafts.",
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.bits == SOURCE and (self.loops != 1 or self.rank):
            raise BadInputError("bits source goes with loops 1 and rank 0: what layers share are no blocks of the file")
        if self.block_size not in (None, BLOCK_SIZE) and self.bits == SOURCE:
            raise BadInputError(f"bits source keeps a GGUF file's own blocks of {BLOCK_SIZE}; leave out block-size")
        if self.block_size not in (None, BLOCK_SIZE) and self.bits not in (None, 4, 8):
            raise BadInputError(f"block-size is of 4 or 8 bits; leave it out with bits {self.bits}")
        if self.data is not None and self.bits not in (None, 4, 8):
            raise BadInputError(f"data is what 4 or 8 bits are rounded with; leave it out with bits {self.bits}")
        if self.repair_rank and self.data is None:
            raise BadInputError("repair-rank: adapters take up what rounding lost on some texts; give them with data")
        if self.max_size is not None:
            self._check_budget()
        if self.merge_adapters and self.data is not None:
            raise BadInputError("data rounds the block that depths share; leave it out with merge-adapters")
        if self.merge_adapters and self.kv_bits != 32:
            raise BadInputError(f"kv-bits {self.kv_bits} does not go with merge-adapters; leave it out")
        if self.eight_bit and self.bits not in (None, 4):
            raise BadInputError(f"eight-bit parts go with bits 4, not {self.bits}")

    def resolved(self, fields: Mapping[str, Any]) -> ExportOptions:
        """The options for a source with these fields of config.json, none of them open.

        Raises:
            BadInputError: the loops are not those of a looped model.
        """
        looped = own_loops(fields) is not None
        mixed = self.eight_bit is not None or self.max_size is not None
        bits: ExportBits = self.bits if self.bits is not None else 8 if looped and not mixed else 4
        return dataclasses.replace(self, bits=bits, loops=loops_of(self.loops, fields))

    def _check_budget(self) -> None:
        if self.bits not in (None, 4):
            raise BadInputError(f"max-size goes with bits 4, which it makes 8 in places, not {self.bits}")
        if self.eight_bit is not None:
            raise BadInputError("max-size chooses what has 8 bits; leave out eight-bit")
        if self.data is None:
            raise BadInputError("max-size needs data: texts on which to measure where 8 bits count")
