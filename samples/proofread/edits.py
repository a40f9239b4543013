"""What the error model is made of: sentences as words with places, and edits that put an error into a text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

# Letters with apostrophes inside; nothing that hangs on a hyphen, a slash, a digit or a dot ("e-mail", "U.S.", "G2C").
WORD = re.compile(r"(?<![\w'/@-])(?<!\w\.)[A-Za-z]+(?:'[A-Za-z]+)*(?![\w'/@-])(?!\.\w)")


@dataclass(frozen=True)
class Word:
    """A word, where it begins and ends in the text, and in small letters."""

    text: str
    start: int
    end: int
    first: bool  # of a sentence

    @property
    def low(self) -> str:
        return self.text.lower()


@dataclass(frozen=True)
class Edit:
    """An error: in the right text, what stands from `start` to `end` becomes `wrong`."""

    start: int
    end: int
    wrong: str
    kind: str

    def moved(self, by: int) -> Edit:
        return replace(self, start=self.start + by, end=self.end + by)

    def near(self, other: Edit) -> bool:
        """Whether the two touch: one place takes one error."""
        return self.start <= other.end and other.start <= self.end


def find_words(sentence: str) -> list[Word]:
    found = [(match.group(), match.start(), match.end()) for match in WORD.finditer(sentence)]
    return [Word(text, start, end, index == 0 and start < 2) for index, (text, start, end) in enumerate(found)]


def instead(word: Word, wrong: str, kind: str) -> Edit:
    """Another word in the place of this one, with its capitals."""
    if word.text.isupper() and len(word.text) > 1:
        wrong = wrong.upper()
    elif word.text[0].isupper():
        wrong = wrong[0].upper() + wrong[1:]
    return Edit(word.start, word.end, wrong, kind)


def without(words: list[Word], index: int, kind: str) -> Edit | None:
    """A word and the space behind it left out; where it began the sentence, the next gets its capital."""
    if index + 1 >= len(words) or words[index + 1].start != words[index].end + 1:
        return None
    word, following = words[index], words[index + 1]
    if not word.first:
        return Edit(word.start, following.start, "", kind)
    return Edit(word.start, following.start + 1, following.text[0].upper(), kind)


def follows(words: list[Word], index: int) -> bool:
    """Whether word `index` stands right behind the one before it, with nothing but a space between."""
    return index > 0 and words[index].start == words[index - 1].end + 1


def apply(text: str, edits: Iterable[Edit]) -> str:
    """The text with the errors in it. Edits must not overlap."""
    for edit in sorted(edits, key=lambda edit: -edit.start):
        text = text[: edit.start] + edit.wrong + text[edit.end :]
    return text


def undo(wrong_text: str, right_text: str, edits: Iterable[Edit]) -> str:
    """The inverse of `apply`: each error in the wrong text replaced by what stood there."""
    shift, parts, at = 0, [], 0
    for edit in sorted(edits, key=lambda edit: edit.start):
        start = edit.start + shift
        if wrong_text[start : start + len(edit.wrong)] != edit.wrong:
            raise ValueError(f"{edit} is not in {wrong_text!r}")
        parts += [wrong_text[at:start], right_text[edit.start : edit.end]]
        at = start + len(edit.wrong)
        shift += len(edit.wrong) - (edit.end - edit.start)
    return "".join([*parts, wrong_text[at:]])
