"""Prose: text as the model sees it, and where each of its characters stands in the document.

The model learned from plain ASCII on one line: curly quotes, dashes and runs of white space come to it as their plain
forms. What must not change, such as links, code or the end of a line, is fixed; what it must not see is left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

PLAIN = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})
OPAQUE = re.compile(
    r"""(?x)
    (?:https?|ftp|file|mailto):[^\s<>]*[^\s<>.,;:!?'")\]]   # addresses
    | www\.[^\s<>]*[^\s<>.,;:!?'")\]]
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+
    | [\w.-]*[\\/][\w.-]+[\\/][\w./\\-]*\w                  # paths
    | \{\{.{,80}?\}\} | \{%.{,80}?%\} | \$\$.{1,200}?\$\$ | \$[^\s$][^$\n]*[^\s$]\$(?!\d)
    | (?<!\S)\[[ xX]\](?!\S) | \[\^[^\]\s]+\] | :[a-z][a-z0-9_+]+:                   # boxes to tick, footnotes, emoji
    | \S{50,}
    """
)
SHOWN = 24  # characters of a fixed passage that the model sees as they are
STAND_IN = "this"  # what it sees in the place of others


@dataclass(frozen=True)
class Prose:
    """A passage of a document.

    Attributes:
        text: as the model sees it: no white space at its ends, single spaces in it.
        starts, ends: where each character of `text` stands in the document.
        fixed: which of them no edit may touch.
        sentence: whether it begins and ends as sentences do; headings and items of lists need not.
    """

    text: str
    starts: Sequence[int]
    ends: Sequence[int]
    fixed: Sequence[bool]
    sentence: bool = True

    def cut(self, start: int, end: int, sentence: bool) -> Prose:
        parts = (self.text[start:end], self.starts[start:end], self.ends[start:end], self.fixed[start:end])
        return Prose(*parts, sentence)

    def place(self, start: int, end: int) -> tuple[int, int] | None:
        """Where an edit of characters `start` to `end` goes in the document; None where it would touch what is fixed
        or left out.
        """
        if start == end:
            inside = 0 < start < len(self.text)
            if inside and self.fixed[start - 1] and self.fixed[start] and " " not in self.text[start - 1 : start + 1]:
                return None
            at = self.ends[start - 1] if start else self.starts[0]
            return at, at
        if any(self.fixed[start:end]):
            return None
        if any(self.ends[at] != self.starts[at + 1] for at in range(start, end - 1)):
            return None
        return self.starts[start], self.ends[end - 1]


@dataclass
class Builder:
    """Makes a `Prose` from passages of a document, in order."""

    text: list[str] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    fixed: list[bool] = field(default_factory=list)

    def words(self, words: str, start: int) -> None:
        """Add text that stands at `start` of the document."""
        for at, letter in enumerate(words, start):
            if letter.isspace():
                self.space(at, at + 1, fixed=letter not in " \xa0")
            else:
                self._add(letter.translate(PLAIN), at, at + 1, fixed=False)

    def space(self, start: int, end: int, fixed: bool) -> None:
        """Add white space; what follows other white space widens it."""
        if not self.text:
            return
        if self.text[-1] != " ":
            self._add(" ", start, end, fixed)
        else:
            if self.ends[-1] == start:
                self.ends[-1] = end
            self.fixed[-1] |= fixed

    def passage(self, passage: str, start: int, end: int) -> None:
        """Add a passage that must stay as it is."""
        if not passage.strip():
            return
        is_short = len(passage) <= SHOWN and re.fullmatch(r"[\w.()-]+|\W", passage)
        shown = passage if is_short else STAND_IN
        for at, letter in enumerate(shown):
            self._add(letter, start if at == 0 else end, end, fixed=True)

    def mixed(self, text: str, start: int) -> None:
        """Add text in which addresses and the like are fixed."""
        last = 0
        for match in OPAQUE.finditer(text):
            self.words(text[last : match.start()], start + last)
            self.passage(match.group(), start + match.start(), start + match.end())
            last = match.end()
        self.words(text[last:], start + last)

    def build(self, sentence: bool = True) -> Prose:
        end = len(self.text) - (self.text[-1:] == [" "])
        return Prose("".join(self.text[:end]), self.starts[:end], self.ends[:end], self.fixed[:end], sentence)

    def _add(self, letter: str, start: int, end: int, fixed: bool) -> None:
        self.text.append(letter)
        self.starts.append(start)
        self.ends.append(end)
        self.fixed.append(fixed)
