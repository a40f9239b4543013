"""Put words that the texts never use into some of them: a model has to copy also what it never learned.

    python samples/proofread/strange_words.py build/proofread/train.jsonl build/proofread/small OUT.jsonl

In a share of the texts one to four words give way to others, in the text and the right text alike: words that nothing
is wrong with, nor with those beside them. A word becomes one of the tokenizer's vocabulary with the same ending and
kind of first letter, so that articles and agreement stay as right or wrong as they were; a name becomes another one,
or one made up of several tokens.
"""

from __future__ import annotations

import argparse
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from pathlib import Path

import pairs
from transformers import AutoTokenizer

SHARE, MOST = 0.4, 4  # of the texts, and words of each
MADE_UP = 0.5  # of the names
PLAIN, NAME = re.compile("[a-z]{4,}"), re.compile("[A-Z][a-z]{2,}")
ENDS_SENTENCE = re.compile(r"[.!?:]['\")\]]*$")
ENDINGS = ("ing", "ed", "ly", "s")
VOWELS = "aeiou"


class Words:
    """What takes the place of words: those of a vocabulary, and the pieces that names are made up of."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """
        Args:
            tokens: as a byte-level tokenizer has them, with "Ġ" for the space before a word.
        """
        self._like: dict[tuple[str, bool], list[str]] = defaultdict(list)
        self._names, self._pieces = list[str](), list[str]()
        for token in sorted(tokens):
            word = token.removeprefix("Ġ")
            if word == token and re.fullmatch("[a-z]{2,4}", token):
                self._pieces.append(token)
            elif word != token and PLAIN.fullmatch(word):
                self._like[kind(word)].append(word)
            elif word != token and NAME.fullmatch(word):
                self._names.append(word)

    def instead_of(self, word: str, rng: random.Random) -> str:
        """Another word of the same kind."""
        if PLAIN.fullmatch(word):
            return rng.choice(self._like[kind(word)] or [word])
        name = rng.choice(self._names or [word])
        if self._pieces and rng.random() < MADE_UP:
            name += "".join(rng.choices(self._pieces, k=rng.randint(1, 2)))
        return name


def kind(word: str) -> tuple[str, bool]:
    """The ending that agreement hangs on, and whether a word begins with a vowel."""
    return next((ending for ending in ENDINGS if word.endswith(ending)), ""), word[0] in VOWELS


def places(text: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    """Where words stand that may be others: between two that are right too, within a sentence."""
    found = []
    for at, other, size in SequenceMatcher(None, text, right, autojunk=False).get_matching_blocks():
        for step, (before, word) in enumerate(pairwise(text[at : at + size - 1]), 1):
            if not ENDS_SENTENCE.search(before) and (PLAIN.fullmatch(word) or NAME.fullmatch(word)):
                found.append((at + step, other + step))
    return found


def with_strange_words(text: str, right: str, words: Words, rng: random.Random) -> tuple[str, str]:
    """The pair with one to `MOST` of its words exchanged, where it has any."""
    before, behind = text.split(" "), right.split(" ")
    possible = places(before, behind)
    for at, other in rng.sample(possible, min(len(possible), rng.randint(1, MOST))):
        before[at] = behind[other] = words.instead_of(before[at], rng)
    return " ".join(before), " ".join(behind)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=SHARE, help="of the texts that get such words")
    parser.add_argument("--seed", type=int, default=pairs.SEED)
    arguments = parser.parse_args()
    rng, words = random.Random(arguments.seed), Words(AutoTokenizer.from_pretrained(arguments.tokenizer).get_vocab())
    before = pairs.read_pairs(arguments.texts)
    made = [with_strange_words(*pair, words, rng) if rng.random() < arguments.share else pair for pair in before]
    pairs.write_pairs(arguments.out, made)
    changed = sum(pair != other for pair, other in zip(before, made, strict=True))
    print(f"{arguments.out}: {changed} texts with strange words")


if __name__ == "__main__":
    main()
