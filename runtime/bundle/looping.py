"""`Looping`: how the loops of a model follow each other, and which of them may be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

GateKind = Literal["mlp", "hazard", "none"]
GATE_KINDS: tuple[GateKind, ...] = get_args(GateKind)


@dataclass(frozen=True)
class Looping:
    """In what looped models differ; the defaults are those of models that were made recursive here.

    Attributes:
        norm_inside: the final norm ends each loop: what it gives enters the next loop, the gate and the head (Ouro,
            Nanbeige). Else it stands in front of gate and head alone, and the next loop goes on from what it read.
        gate: `mlp`, the probability that a depth's token is full depth's; `hazard`, the probability of leaving at this
            depth or before, from that of leaving at each (Ouro, arXiv 2510.25741); or `none`.
        exits: the depths whose logits mean something, in order; None: all.
        draft_depth: the depth whose tokens are drafts of full depth's.
    """

    norm_inside: bool = False
    gate: GateKind = "mlp"
    exits: tuple[int, ...] | None = None
    draft_depth: int = 1


OWN_LOOPING, UNLOOPED = Looping(), Looping(gate="none")  # of models made recursive here; of one loop
