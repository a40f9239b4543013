"""How well texts were corrected: exact matches with an interval, F0.5 of edits, right texts left alone."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher

TOKEN = re.compile(r"\w+(?:['-]\w+)*|[^\w\s]")
BETA = 0.5  # precision counts twice as much as recall: a wrong correction costs more than a missed one
Z = 1.959964  # of a 95 % interval

TokenEdit = tuple[int, int, tuple[str, ...]]  # tokens from..to of the text become these


@dataclass(frozen=True)
class Scores:
    """Shares between 0 and 1; intervals are Wilson's at 95 %."""

    texts: int
    exact: float
    exact_interval: tuple[float, float]
    precision: float
    recall: float
    f05: float
    clean: int
    clean_kept: float  # share of the texts without any error that were left as they were
    clean_interval: tuple[float, float]
    faulty_exact: float  # share of the texts with errors that are wholly right

    def as_record(self) -> dict[str, object]:
        return {
            key: [round(part, 4) for part in value] if isinstance(value, tuple) else round(value, 4)
            for key, value in asdict(self).items()
        }


def tokens(text: str) -> list[str]:
    """Words (with their apostrophes and hyphens) and single marks."""
    return TOKEN.findall(text)


def token_edits(source: str, target: str) -> set[TokenEdit]:
    """The edits from one text to another, as difflib finds them; tokens replaced by as many are single edits."""
    before, after = tokens(source), tokens(target)
    found = _spacing(source, target)
    for tag, first, last, start, end in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "replace" and last - first == end - start:
            found |= {(first + at, first + at + 1, (after[start + at],)) for at in range(last - first)}
        elif tag != "equal":
            found.add((first, last, tuple(after[start:end])))
    return found


def _spacing(source: str, target: str) -> set[TokenEdit]:
    """An edit of spaces alone, as in "a , b" for "a, b", which tokens do not show."""
    return {(-1, -1, ("spaces",))} if source != target and tokens(source) == tokens(target) else set()


def f_beta(precision: float, recall: float, beta: float = BETA) -> float:
    weight = beta * beta
    divisor = weight * precision + recall
    return (1 + weight) * precision * recall / divisor if divisor else 0.0


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    if not count:
        return (0.0, 1.0)
    share, square = hits / count, Z * Z
    middle = (share + square / (2 * count)) / (1 + square / count)
    half = Z * math.sqrt(share * (1 - share) / count + square / (4 * count * count)) / (1 + square / count)
    return (max(0.0, middle - half), min(1.0, middle + half))


def score(texts: Sequence[str], correct: Sequence[str], answers: Sequence[str]) -> Scores:
    """Score answers to texts whose right form is known.

    Edits are counted over all texts: one is right when the correct text has the same edit at the same place.

    Raises:
        ValueError: the three are not of the same length, or empty.
    """
    if not texts:
        raise ValueError("there is nothing to score")
    right = proposed = wanted = exact = clean = kept = 0
    for text, target, answer in zip(texts, correct, answers, strict=True):
        gold, own = token_edits(text, target), token_edits(text, answer)
        right, proposed, wanted = right + len(gold & own), proposed + len(own), wanted + len(gold)
        exact += answer == target
        clean += text == target
        kept += text == target == answer
    precision = right / proposed if proposed else 1.0
    recall = right / wanted if wanted else 1.0
    faulty = len(texts) - clean
    return Scores(
        texts=len(texts),
        exact=exact / len(texts),
        exact_interval=wilson(exact, len(texts)),
        precision=precision,
        recall=recall,
        f05=f_beta(precision, recall),
        clean=clean,
        clean_kept=kept / clean if clean else 1.0,
        clean_interval=wilson(kept, clean),
        faulty_exact=(exact - kept) / faulty if faulty else 1.0,
    )
