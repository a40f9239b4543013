"""Pieces: what goes to the model at a time. It learned on texts of one to three sentences."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator

from proofread.prose import Prose

MOST_SENTENCES = 3
LONGEST = 400  # characters, some 100 tokens
ENDS = re.compile(r"""(?<=[.?!])["')\]]*\s(?=["'(\[]*[^\sa-z])""")
ABBREVIATIONS = {
    *("mr", "mrs", "ms", "dr", "prof", "st", "jr", "sr", "vs", "etc", "e.g", "i.e", "no", "fig", "vol", "approx", "cf"),
    *("jan", "feb", "mar", "apr", "aug", "sept", "sep", "oct", "nov", "dec", "inc", "ltd", "co", "dept", "gen", "sen"),
}
WORD = re.compile(r"[A-Za-z]+(?:'[A-Za-z]+)?")
# Some of these are in nearly every long English sentence; other languages with the same letters have hardly any.
ENGLISH = frozenset(
    WORD.findall(
        """the a and of to is that it for you with was are this be have not they we at by from but what your she he his
        her i i'm my our there their were will would can could do does did has had if about out who which when how these
        those it's don't thanks please been than them then because into"""
    )
)
CODE = re.compile(r"[|{}]|;$")  # what prose has not
SURE, SHARE = 9, 0.08  # words from which a piece with a smaller share of them is another language
LATIN = "\u024f"  # the last of its letters
LETTERS = 0.6  # share of letters and spaces that prose has at least


def cut(prose: Prose, most: int = MOST_SENTENCES) -> Iterator[Prose]:
    """The pieces of a passage, in order, without the white space between them; of so many sentences at most."""
    start, ends = 0, [*_sentence_ends(prose.text), len(prose.text)]
    while start < len(prose.text):
        following = bisect_right(ends, start)
        within = [end for end in ends[following : following + most] if end <= start + LONGEST]
        end = within[-1] if within else _clause_end(prose.text, start, ends[following])
        begins = start == 0 or ends[following - 1] == start - 1
        yield prose.cut(start, end, prose.sentence and bool(within) and begins)
        start = end + 1


def _sentence_ends(text: str) -> Iterator[int]:
    """Where the white space behind each sentence but the last stands."""
    for match in ENDS.finditer(text):
        end = match.end() - 1
        last = text[:end].rpartition(" ")[2].rstrip(".").lstrip("(\"'").lower()
        if not (
            text[end - 1] == "." and (last in ABBREVIATIONS or (len(last) == 1 and last.isalpha() and last != "i"))
        ):
            yield end


def _clause_end(text: str, start: int, end: int) -> int:
    """Where to cut a sentence that is too long: behind a mark, or between words."""
    if end - start <= LONGEST:
        return end
    for pattern in (r"[,;:\u2026-](?= )", r"(?= )"):
        places = [match.end() for match in re.compile(pattern).finditer(text, start + LONGEST // 4, start + LONGEST)]
        if places:
            return places[-1]
    space = text.find(" ", start + 1, end)
    return end if space < 0 else space


def reason_to_skip(text: str) -> str | None:
    """Why a piece is nothing for the model: an empty text where that goes without saying, None where it is prose."""
    words = [word.lower() for word in WORD.findall(text)]
    if len(words) < 2:
        return "it is not in English" if any(letter.isalpha() and letter > LATIN for letter in text) else ""
    if sum(letter.isascii() and letter.isalpha() for letter in text) < LETTERS * sum(map(str.isalpha, text)):
        return "it is not in English"
    if CODE.search(text) or sum(letter.isalpha() or letter == " " for letter in text) < LETTERS * len(text):
        return ""
    if len(text) > 2 * LONGEST:
        return "it has no words to cut it at"
    english = sum(word in ENGLISH for word in words)
    return "it does not look like English" if len(words) >= SURE and english < SHARE * len(words) else None
