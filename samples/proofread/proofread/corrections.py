"""From a reply to edits of the document."""

from __future__ import annotations

from collections.abc import Sequence

from proofread.checks import is_allowed
from proofread.comparing import Change
from proofread.corrected import Edit, Run, apply
from proofread.markdown import structure
from proofread.prose import Prose
from proofread.replies import Reply


def corrections(piece: Prose, reply: Reply, sure: float, curly: bool) -> tuple[list[Edit], list[Run]]:
    """The edits that a reply makes to its piece, and the depths of what stays.

    Args:
        sure: the least probability of a change that is made.
        curly: whether apostrophes are curly.
    """
    edits, runs, at = [], [], 0
    for change in [*reply.changes, Change(len(piece.text), len(piece.text), len(reply.text), len(reply.text))]:
        runs += _kept(piece, reply, at, change)
        at = change.end
        if reply.probability(change) >= sure:
            edits += _edit(piece, reply, change, curly)
    return edits, runs


def _edit(piece: Prose, reply: Reply, change: Change, curly: bool) -> list[Edit]:
    for variant in (change, change.also):
        if variant is None:
            continue
        inserted = reply.text[variant.first : variant.last]
        place = piece.place(variant.start, variant.end)
        if place is not None and is_allowed(piece, variant, inserted):
            depths = [0] * len(inserted)
            for token in reply.tokens:
                for at in range(max(token.start, variant.first), min(token.end, variant.last)):
                    depths[at - variant.first] = token.depth
            inserted = inserted.replace("'", "\u2019") if curly else inserted
            return [Edit(*place, inserted, tuple(depths))] if inserted or place[0] < place[1] else []
    return []


def _kept(piece: Prose, reply: Reply, start: int, change: Change) -> list[Run]:
    """The tokens of what stays from `start` to a change."""
    shift, runs = change.first - change.start, []
    for token in reply.tokens:
        begin, end = max(token.start - shift, start), min(token.end - shift, change.start)
        if begin < end and piece.starts[begin] < piece.ends[end - 1]:
            runs.append(Run(piece.starts[begin], piece.ends[end - 1], token.depth))
    return runs


def without_overlaps(edits: Sequence[Edit]) -> list[Edit]:
    """In order, each from where the one before ends."""
    chosen: list[Edit] = []
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        if not chosen or edit.start >= chosen[-1].end:
            chosen.append(edit)
    return chosen


def keep_structure(text: str, edits: Sequence[Edit]) -> list[Edit]:
    """The edits with which a Markdown document keeps its structure: all, or those of each half that do."""
    if not edits:
        return []
    before = structure(text)

    def kept(edits: list[Edit], beside: list[Edit]) -> list[Edit]:
        if not edits or structure(apply(text, sorted([*beside, *edits], key=lambda edit: edit.start))) == before:
            return edits
        if len(edits) == 1:
            return []
        first = kept(edits[: len(edits) // 2], beside)
        return first + kept(edits[len(edits) // 2 :], beside + first)

    return kept(list(edits), [])
