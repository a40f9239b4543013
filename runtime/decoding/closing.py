"""JSON that ends in time: the shortest way from where a reply stands to a whole document."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rrt_edge.runtime.decoding.token_bytes import FALLBACK, TokenBytes

LONGEST = 512  # tokens of a way that is looked for
OUTSIDE = ("}", "]", "0", '"')  # what ends soonest, outside texts; '"' is what ends a text
OPENING = ',{["'  # begins what has to be ended as well
MOST_COMPARED = 64  # tokens of which the shortest is taken where none of these goes


class Place(Enum):
    """Where a piece of JSON ends: between texts, inside one, or there behind a backslash."""

    OUTSIDE = 0
    INSIDE = 1
    ESCAPED = 2


class Closer:
    """Finds ways to the end for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int) -> None:
        self._tokenizer, self._vocabulary = tokenizer, vocabulary
        self._bytes = TokenBytes(tokenizer)
        names = {letter: (letter, f"<0x{ord(letter):02X}>") for letter in OUTSIDE}
        self._tokens = {letter: [tokenizer.token_to_id(name) for name in names[letter]] for letter in OUTSIDE}

    def place(self, place: Place, token: int) -> Place:
        """Where a reply stands behind one more token."""
        for byte in self._bytes(token):
            if place is Place.ESCAPED:
                place = Place.INSIDE
            elif byte == ord("\\") and place is Place.INSIDE:
                place = Place.ESCAPED
            elif byte == ord('"'):
                place = Place.OUTSIDE if place is Place.INSIDE else Place.INSIDE
        return place

    def way(self, matcher: Any, place: Place) -> list[int] | None:
        """The tokens with which a reply is a whole document, as few as are easily found; None where none are.

        Args:
            matcher: llguidance's, at the end of the reply; it stays there.
            place: where the reply stands.
        """
        matcher, way = matcher.deep_copy(), list[int]()
        while not matcher.is_accepting() and not matcher.is_stopped():
            tokens = matcher.compute_ff_tokens() or self._shortest(matcher, place)
            if not tokens or len(way) > LONGEST or not matcher.consume_tokens(tokens):
                return None
            place = reduce(self.place, tokens, place)
            way += tokens
        return way

    def length(self, matcher: Any, place: Place, token: int) -> int:
        """Tokens of the way behind one more token, which may be the one that ends the reply."""
        matcher = matcher.deep_copy()
        way = self.way(matcher, self.place(place, token)) if matcher.consume_token(token) else None
        return LONGEST if way is None else len(way)

    def without_more(self, place: Place) -> NDArray[np.bool_]:
        """[V]: the tokens that begin nothing which would have to be ended as well."""
        return self._calm_outside if place is Place.OUTSIDE else self._calm

    def _shortest(self, matcher: Any, place: Place) -> list[int]:
        """The token that is likely nearest to the end."""
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        for letter in OUTSIDE if place is Place.OUTSIDE else '"':
            for token in self._tokens[letter]:
                if token is not None and token < len(bits) and bits[token]:
                    return [token]
        allowed = [int(token) for token in np.flatnonzero(bits)[:MOST_COMPARED]]
        return sorted(allowed, key=lambda token: len(self._bytes(token)) or LONGEST)[:1]

    @cached_property
    def _calm_outside(self) -> NDArray[np.bool_]:
        return self._those_without(OPENING, lambda letters: letters)

    @cached_property
    def _calm(self) -> NDArray[np.bool_]:
        escaping = self._those_without("\\", lambda letters: letters)  # which may go on with the halves of a character
        return escaping & self._those_without(OPENING, lambda letters: letters.partition('"')[2])

    def _those_without(self, opening: str, part: Callable[[str], str]) -> NDArray[np.bool_]:
        """[V]: the tokens in a part of whose letters there is none of those that begin something."""
        calm = np.ones(self._vocabulary, np.bool_)
        for name, token in self._tokenizer.get_vocab().items():
            byte = FALLBACK.fullmatch(name)
            letters = part(name if byte is None else chr(int(byte[1], 16)))
            if token < self._vocabulary and any(letter in letters for letter in opening):
                calm[token] = False
        return calm
