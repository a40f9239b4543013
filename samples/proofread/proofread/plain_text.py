"""The prose of a plain text: paragraphs between empty lines, hard-wrapped or not, and lines that stand alone."""

from __future__ import annotations

import re
from collections.abc import Iterator

from proofread.prose import Builder, Prose

LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n|\Z)")
MARK = re.compile(r"(?:[ \t]*>)*[ \t]*(?:(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+)?")  # of a quotation, a list's item
WRAPPED_FROM = 40  # characters from which a line goes on in the next
TITLE = 5  # words up to which a line without a full stop is no sentence


def find_prose(text: str) -> Iterator[Prose]:
    """The passages to read, in order."""
    builder, mark_before, wraps = Builder(), "", False
    for line in LINE.finditer(text, len(text) - len(text.removeprefix("\ufeff"))):
        mark = MARK.match(line.group())[0]  # type: ignore[index]  it matches everywhere
        words, start = line.group()[len(mark) :].rstrip(), line.start() + len(mark)
        if not (words and wraps and _same_mark(mark_before, mark)):
            yield from _whole(builder)
            builder = Builder()
        if builder.text:
            builder.space(builder.ends[-1], start, fixed=True)
        builder.mixed(words, start)
        mark_before, wraps = mark, len(words) >= WRAPPED_FROM
    yield from _whole(builder)


def _same_mark(before: str, mark: str) -> bool:
    """Whether a line with this mark may go on the one before: the quotation is the same, and no item begins."""
    return before.count(">") == mark.count(">") and not mark.rstrip().rstrip(">").strip(" \t>")


def _whole(builder: Builder) -> Iterator[Prose]:
    text = "".join(builder.text).rstrip()
    if text:
        yield builder.build(sentence=text[-1] not in ",:;" and (text[-1] in ".?!" or len(text.split()) > TITLE))
