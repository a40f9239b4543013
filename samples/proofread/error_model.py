"""The seeded error model: from a right text to the same text as somebody in a hurry would have written it.

The weights are a guess at how often people make each error, set before any text was tried and not fitted to a held-out
set.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grammar_errors as grammar
import mechanics_errors as mechanics
import spelling_errors as spelling
from edits import Edit, Word, apply, find_words

CLEAN_SHARE = 0.25  # of the texts
ERRORS_A_SENTENCE = {0: 0.14, 1: 0.42, 2: 0.25, 3: 0.12, 4: 0.05, 5: 0.02}  # in texts that have any

Candidates = Callable[[list[Word], random.Random, str], list[Edit]]


@dataclass(frozen=True)
class Pair:
    """A text with errors and the right one."""

    text: str
    correct: str
    edits: tuple[Edit, ...]  # places in `correct`, from left to right

    @property
    def kinds(self) -> list[str]:
        return [edit.kind for edit in self.edits]


class ErrorModel:
    """Puts errors into texts.

    Args:
        known: words that are right, in small letters: a slip of a finger must not make one of them by chance.
    """

    def __init__(self, known: frozenset[str] = frozenset()) -> None:
        def seeing(candidates: Callable[[list[Word], random.Random, frozenset[str]], list[Edit]]) -> Candidates:
            return lambda words, rng, sentence: candidates(words, rng, known)

        self.kinds: dict[str, tuple[float, Candidates]] = {
            "slip": (0.15, seeing(spelling.slips)),
            "spelling": (0.16, seeing(spelling.spellings)),
            "homophone": (0.12, seeing(spelling.sound_alikes)),
            "agreement": (0.12, grammar.agreement),
            "tense": (0.09, grammar.tense),
            "article": (0.07, grammar.articles),
            "preposition": (0.05, grammar.prepositions),
            "form": (0.05, grammar.forms),
            "apostrophe": (0.05, mechanics.apostrophes),
            "capital": (0.05, mechanics.capitals),
            "punctuation": (0.05, mechanics.punctuation),
            "missing": (0.035, mechanics.missing),
            "doubled": (0.03, mechanics.doubled),
            "joined": (0.03, seeing(spelling.joins)),
            "split": (0.03, seeing(spelling.splits)),
            "pronoun": (0.015, grammar.pronouns),
        }

    def candidates(self, sentence: str, kind: str, rng: random.Random) -> list[Edit]:
        """Errors of one kind that this sentence could have."""
        return self.kinds[kind][1](find_words(sentence), rng, sentence)

    def edit_sentence(self, sentence: str, errors: int, rng: random.Random) -> list[Edit]:
        """At most that many errors at different places; fewer where the sentence has no place for more."""
        words, chosen = find_words(sentence), list[Edit]()
        weights = {kind: weight for kind, (weight, _) in self.kinds.items()}
        while len(chosen) < errors and weights:
            kind = rng.choices(list(weights), list(weights.values()))[0]
            drawn = self.kinds[kind][1](words, rng, sentence)
            possible = [edit for edit in drawn if not any(edit.near(other) for other in chosen)]
            possible = [edit for edit in possible if sentence[edit.start : edit.end] != edit.wrong]
            if possible:
                chosen.append(rng.choice(possible))
            else:
                del weights[kind]
        return chosen

    def spoil(self, sentences: Sequence[str], rng: random.Random) -> Pair:
        """One to three right sentences as one text, without any error or with some in most of them."""
        correct, edits = " ".join(sentences), list[Edit]()
        if rng.random() >= CLEAN_SHARE:
            while not edits:
                offset = 0
                for sentence in sentences:
                    errors = rng.choices(list(ERRORS_A_SENTENCE), list(ERRORS_A_SENTENCE.values()))[0]
                    edits += [edit.moved(offset) for edit in self.edit_sentence(sentence, errors, rng)]
                    offset += len(sentence) + 1
        edits.sort(key=lambda edit: edit.start)
        return Pair(apply(correct, edits), correct, tuple(edits))
