"""Right sentences from a file of one a line: which lines serve for what, which are fit, which are near-duplicates."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import word_lists

# Lines of the file, counted from 1. Lines 1 to 2,800 belong to calibration and perplexity elsewhere.
HELD_OUT_LINES = (2_801, 10_000)
TRAINING_LINES = (10_001, None)

FIT = re.compile(r"^[A-Z\"(][A-Za-z0-9 ,.;:?!'\"()&%$/+-]*[.?!]$")
# Leftovers of web pages: two sentences, or a heading and one, run together; numbered slides; cut abbreviations.
UNFIT = re.compile(
    r"[a-z][A-Z]|[.?!][A-Z][a-z]|^\(|^(?:Slide|Question|Answer|Figure|Step|Note)\b|"
    r"^[A-Z][A-Za-z]*:|\bU\.S\.$|[a-z]\. [a-z0-9]|"
    r"\.\.|--| - |\bw00t|\s[,.;:?!]|,,|\bto\w+\.gov|[?!][.?!]|\b(?:thru|tho)\b|\.\w+\.$|"
    r"[a-z] (?:The|This|These|We|You|If|It|When|How|What|Our|Your|A|An|In|For|To|As|Is|Are|There) [a-z]"
)
SHORTEST, LONGEST = 4, 32  # words
RUN = 5  # words in a row by which sentences are compared
SHARED = 0.3  # share of a sentence's runs that occur in training text from which it counts as a near-duplicate
KNOWN_FROM = 3  # times a word must occur in training text to count as right


def read_lines(path: Path) -> list[str]:
    packed = path.read_bytes()
    text = (gzip.decompress(packed) if path.suffix == ".gz" else packed).decode("utf-8")
    return [line.strip() for line in text.splitlines()]


def lines_between(lines: Sequence[str], between: tuple[int, int | None]) -> list[str]:
    first, last = between
    return list(lines[first - 1 : last])


def is_fit(sentence: str) -> bool:
    """Whether a sentence looks right enough to be a target: no leftovers of a page, no misspelling from our list."""
    words = sentence.split()
    if not SHORTEST <= len(words) <= LONGEST or not FIT.match(sentence) or UNFIT.search(sentence):
        return False
    if sentence.count('"') % 2 or sentence.count("(") != sentence.count(")"):
        return False
    low = [word.strip(",.;:?!'\"()").lower() for word in words]
    if any(one == other and one.isalpha() and one not in ("that", "had") for one, other in pairwise(low)):
        return False
    if sum(word[:1].isupper() for word in words[1:]) > 0.4 * len(words):
        return False  # a heading
    return not any(word in misspelt() for word in low)


def misspelt() -> frozenset[str]:
    """Misspellings that are not words themselves."""
    if not _misspelt:
        right = set(word_lists.misspellings()) | set(word_lists.homophones())
        words = {wrong for wrongs in word_lists.misspellings().values() for wrong in wrongs}
        _misspelt.update(word for word in words - right if word not in ALSO_WORDS)
    return frozenset(_misspelt)


_misspelt: set[str] = set()
ALSO_WORDS = {
    *("acres", "clothes", "cloths", "college", "control", "defiantly", "dependant", "discus", "ensue", "exiting"),
    *("finnish", "hole"),
    *("confidant", "hopping", "manger", "mange", "planing", "practise", "preform", "quite", "seam", "sometime"),
    *("strait", "sum"),
    *("therefor", "trough", "wile", "cite", "latter", "chose", "dose", "mobil"),
}  # fmt: skip


def known_words(sentences: Iterable[str]) -> frozenset[str]:
    """Words that occur often enough to be right."""
    counts = Counter(word for sentence in sentences for word in re.findall(r"[a-z]+(?:'[a-z]+)?", sentence.lower()))
    return frozenset(word for word, count in counts.items() if count >= KNOWN_FROM)


def runs(sentence: str) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9]+", sentence.lower())
    length = min(RUN, len(words))
    for at in range(len(words) - length + 1):
        yield tuple(words[at : at + length])


def without_near_duplicates(sentences: Iterable[str], training: Iterable[str]) -> list[str]:
    """Those sentences of which at most a small share was seen in training text or in a sentence before."""
    seen = {run for sentence in training for run in runs(sentence)}
    kept = []
    for sentence in sentences:
        own = list(runs(sentence))
        if sum(run in seen for run in own) <= SHARED * len(own):
            kept.append(sentence)
            seen.update(own)
    return kept
