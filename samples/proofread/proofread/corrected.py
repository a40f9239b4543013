"""`Corrected`: a text, what is to be changed in it, and what was left as it was."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Edit:
    """In the original text, what stands from `start` to `end` becomes `replacement`.

    `depths`: of the model's loops, after which each character of the replacement left.
    """

    start: int
    end: int
    replacement: str
    depths: tuple[int, ...] = ()


@dataclass(frozen=True)
class Left:
    """A passage that stays as it is because the model could not correct it, and why."""

    start: int
    end: int
    reason: str


@dataclass(frozen=True)
class Run:
    """Characters `start` to `end` of the original that came as one token, which left after `depth` loops."""

    start: int
    end: int
    depth: int


@dataclass(frozen=True)
class Segment:
    """A stretch to show: `kept`, `removed` or `inserted`; `depth` is None where no token stands for it."""

    kind: str
    text: str
    depth: int | None


@dataclass(frozen=True)
class Corrected:
    """A text and its corrections; positions count characters of the original.

    Attributes:
        original: the text as it was.
        edits: in order, none overlap.
        left: passages that were not corrected, in order.
        runs: the depths of what stays, in order.
        tokens, depth: how many tokens the model wrote for it, and their mean depth (0 without any).
    """

    original: str
    edits: tuple[Edit, ...]
    left: tuple[Left, ...]
    runs: tuple[Run, ...]
    tokens: int
    depth: float

    @property
    def text(self) -> str:
        """The corrected text."""
        return apply(self.original, self.edits)

    def segments(self) -> Iterator[Segment]:
        """The corrected text and what was removed from it, in order, cut where tokens end."""
        runs, at = iter([*self.runs, Run(len(self.original), len(self.original), 0)]), 0
        run = next(runs)
        for edit in [*self.edits, Edit(len(self.original), len(self.original), "")]:
            while at < edit.start:
                while run.end <= at and run.start < len(self.original):
                    run = next(runs)
                inside = run.start <= at < run.end
                end = min(edit.start, run.end if inside else max(run.start, at + 1))
                yield Segment("kept", self.original[at:end], run.depth if inside else None)
                at = end
            if edit.end > edit.start:
                yield Segment("removed", self.original[edit.start : edit.end], None)
            yield from _inserted(edit)
            at = edit.end


def _inserted(edit: Edit) -> Iterator[Segment]:
    start = 0
    for end in range(1, len(edit.replacement) + 1):
        if end == len(edit.replacement) or edit.depths[end] != edit.depths[start]:
            yield Segment("inserted", edit.replacement[start:end], edit.depths[start])
            start = end


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with the edits made."""
    parts, at = [], 0
    for edit in edits:
        parts += [text[at : edit.start], edit.replacement]
        at = edit.end
    return "".join([*parts, text[at:]])
