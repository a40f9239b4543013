"""What differs between a text and the model's reply: changes of whole words, which together give the reply exactly."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from difflib import SequenceMatcher

TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Change:
    """Characters `start` to `end` of the text become `first` to `last` of the reply.

    `also`: the same change with the white space taken from its other side, where there are two ways to say it.
    """

    start: int
    end: int
    first: int
    last: int
    also: Change | None = None


def compare(text: str, reply: str) -> list[Change]:
    """The changes in order; none overlap."""
    before = [(0, 0), *_tokens(text), (len(text), len(text))]
    after = [(0, 0), *_tokens(reply), (len(reply), len(reply))]
    words = [text[slice(*token)] for token in before[1:-1]]
    answers = [reply[slice(*token)] for token in after[1:-1]]
    same = [(0, 0)]  # tokens that both have
    for block in SequenceMatcher(None, words, answers, autojunk=False).get_matching_blocks():
        same += [(block.a + at + 1, block.b + at + 1) for at in range(block.size)]
    same.append((len(before) - 1, len(after) - 1))
    for at, ((left, own_left), (right, own_right)) in enumerate(itertools.pairwise(same), 1):
        # Of a word that stands there twice, the second goes: "seen the the" is "saw the" without it.
        if right - left - 1 == own_right - own_left > 1 and words[right - 2 : right - 1] == words[right - 1 : right]:
            same[at] = (right - 1, own_right)
    changes = []
    for (left, own_left), (right, own_right) in itertools.pairwise(same):
        gap = (before[left][1], before[right][0], after[own_left][1], after[own_right][0])
        if text[gap[0] : gap[1]] != reply[gap[2] : gap[3]]:
            changes += _changes(text, reply, before[left + 1 : right], after[own_left + 1 : own_right], gap)
    return changes


def _changes(
    text: str, reply: str, before: list[tuple[int, int]], after: list[tuple[int, int]], gap: tuple[int, int, int, int]
) -> list[Change]:
    """Words in the place of as many, the white space the same, are a change each; else the whole gap is one."""
    start, end, first, last = gap
    if len(before) == len(after):
        ends = [(start, first), *((own[1], other[1]) for own, other in zip(before, after, strict=True))]
        begins = [*((own[0], other[0]) for own, other in zip(before, after, strict=True)), (end, last)]
        if all(text[a:c] == reply[b:d] for (a, b), (c, d) in zip(ends, begins, strict=True)):
            return [Change(*own, *other) for own, other in zip(before, after, strict=True)]
    return [_trimmed(text, reply, *gap)]


def _trimmed(text: str, reply: str, start: int, end: int, first: int, last: int) -> Change:
    """Without the white space that both have at an end."""
    also = None
    if end > start and last > first and text[end - 1] == reply[last - 1] == " ":
        if text[start] == reply[first] == " " and min(end - start, last - first) == 1:
            also = Change(start + 1, end, first + 1, last)
        end, last = end - 1, last - 1
    if end > start and last > first and text[start] == reply[first] == " ":
        start, first = start + 1, first + 1
    return Change(start, end, first, last, also)


def _tokens(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in TOKEN.finditer(text)]
