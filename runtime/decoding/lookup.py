"""Drafts from the text itself: what stood behind the last tokens where they stood before, in prompt and reply.

Summaries, code and corrections copy their input (prompt lookup decoding). How likely such a draft is to stand is read
off the reply so far, at no cost: each of its tokens says whether the text had it right.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple

SIZES = (2, 1)  # last tokens that stood before, by preference
EDGES = (1, 3, 9)  # places are counted together where a number of tokens between two agree
FIRST = 0.2  # the chance where the fewest agree, before anything was seen: too low to pay until some were right
PRIOR = 2.0  # tokens that the next shorter agreement counts for
MEMORY = 0.95  # of the counts, at each token


class Guess(NamedTuple):
    """A token that may follow, and how likely it does, if those before it do."""

    token: int
    chance: float


class _Place(NamedTuple):
    """Where a text goes on as this one may: the next token's index, and how many tokens before it agree."""

    next: int
    agree: int


class Lookup:
    """The text of one reply and its prompt, and how often what it said before was what came."""

    def __init__(self) -> None:
        self._text: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # the index behind the last place where some tokens stand
        self._place: _Place | None = None
        self._right, self._seen = [0.0] * len(EDGES), [0.0] * len(EDGES)

    def follow(self, history: Sequence[int]) -> None:
        """Take the tokens that came since: `history` begins with those taken before. Nothing is learnt of the first
        ones, which are the prompt."""
        is_reply = bool(self._text)
        for token in history[len(self._text) :]:
            place = self._place
            if place is not None and is_reply:
                index = _index(place.agree)
                self._right[index] = MEMORY * self._right[index] + (self._text[place.next] == token)
                self._seen[index] = MEMORY * self._seen[index] + 1
            self._text.append(token)
            self._place = self._on(place, token, self._text)
            for size in SIZES:
                self._behind[tuple(self._text[-size:])] = len(self._text)

    def guesses(self, behind: Sequence[int], most: int, least: float = 0.0) -> list[Guess]:
        """What may follow the text and the tokens `behind` it: at most so many tokens, and while they are likely enough
        that all of them do."""
        text, place = self._text, self._place
        if behind:
            text = text.copy()
            for token in behind:
                text.append(token)
                place = self._on(place, token, text)
        guesses: list[Guess] = []
        all_right = 1.0
        while place is not None and len(guesses) < most:
            chance = self._chance(place.agree)
            all_right *= chance
            if all_right < least:
                break
            at = place.next  # where the text ends it goes on with what was guessed
            token = text[at] if at < len(text) else guesses[at - len(text)].token
            guesses.append(Guess(token, chance))
            place = _Place(at + 1, place.agree + 1)
        return guesses

    def _on(self, place: _Place | None, token: int, text: Sequence[int]) -> _Place | None:
        """The place behind the last token of a text, where `place` was the one before it."""
        if place is not None and text[place.next] == token:
            return _Place(place.next + 1, place.agree + 1)
        for size in SIZES:
            found = self._behind.get(tuple(text[-size:]))
            if found is not None:
                return _Place(found, size)
        return None

    def _chance(self, agree: int) -> float:
        """How likely a token is right where so many before it agree."""
        chance = FIRST
        for index in range(_index(agree) + 1):
            chance = (PRIOR * chance + self._right[index]) / (PRIOR + self._seen[index])
        return chance


def _index(agree: int) -> int:
    return bisect_right(EDGES, agree) - 1
