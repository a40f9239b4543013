"""Which tokens a grammar lets come next, through llguidance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rrt_edge.runtime.decoding.closing import Closer, Place
from rrt_edge.runtime.decoding.common_prefix import common_prefix
from rrt_edge.runtime.decoding.grammar import Grammar, Kind
from rrt_edge.runtime.errors import BadInputError, MissingExtraError, from_outside, one_line

MOST_LATEST = 4  # grammars kept compiled: one for each that is compiled at a time
SPARE = 4  # tokens kept back for a text that cannot end at once, in the middle of a character
FAR = 1 << 62  # tokens left, before the way has been looked for
CLOSE, FEW = 64, 16  # tokens before it from which on each is tried where there are no more than so many
NEAR = 16  # tokens before the way to the end from which on nothing new is begun
# JSON as json.dumps writes it: small models would fill replies with the white space that JSON allows everywhere.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Allows(Protocol):
    """Says which tokens [V] may follow the tokens of a reply, `left` of which there may be; None: all.

    Attributes:
        cut: the reply is as it is because it had to end.
    """

    @property
    def cut(self) -> bool: ...

    def allowed(self, reply: Sequence[int], left: int) -> NDArray[np.bool_] | None: ...


class Constraint:
    """Which tokens may come next in one reply; where few are left, those alone that make the document whole in time."""

    def __init__(self, matcher: Any, vocabulary: int, ends: Sequence[int], closer: Closer | None = None) -> None:
        """
        Args:
            closer: where the reply is to be whole however few tokens it may have.
        """
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, list(ends)
        self._taken: list[int] = []
        self._places = [Place.OUTSIDE]  # in JSON: where the reply stands behind so many of these, 0 first
        self._closer = closer
        self._next_look = FAR  # tokens left at which the way to the end is looked for again
        self._looked_at = 0  # tokens of the reply then
        self._needed = 0  # tokens that the end took when it was looked for
        self._way: list[int] = []  # from `_cut_at` on
        self._cut_at: int | None = None

    @property
    def cut(self) -> bool:
        return self._cut_at is not None

    def least(self) -> int:
        """Tokens that a whole reply has, as few as are easily found; 0 where it need not be whole, or none is found."""
        way = None if self._closer is None else self._closer.way(self._matcher, Place.OUTSIDE)
        if way is None:
            self._closer = None
        return len(way or ())

    def check_room(self, most: int) -> None:
        """
        Raises:
            BadInputError: a whole reply has more tokens than it may have.
        """
        least = self.least()
        if most < least:
            message = f"max-tokens {most}: the shortest reply that the grammar allows has about {least}"
            raise BadInputError(message, "max_tokens")

    def allowed(self, reply: Sequence[int], left: int) -> NDArray[np.bool_]:
        """[V]: the tokens that may follow the tokens of a reply; it may be another than the last one's beginning.

        Args:
            left: tokens that the reply may still have.

        Raises:
            BadInputError: the grammar became too complex for its parser.
        """
        common = common_prefix(self._taken, reply)
        if common < len(self._taken):
            self._matcher.rollback(len(self._taken) - common)
            if common < self._looked_at:  # drafts that did not stand
                self._cut_at, self._next_look = None, FAR
        new = list(reply[common:])
        followed = self._matcher.try_consume_tokens(new) if new else 0
        self._taken[common:] = new[:followed]
        if self._closer is not None:
            self._places[common:] = accumulate(new[:followed], self._closer.place, initial=self._places[common])
        allowed = np.zeros(self._vocabulary, np.bool_)
        if followed < len(new) and not self._matcher.is_error():  # a draft that will not stand: nothing follows it
            allowed[self._ends] = True
            return allowed
        if self._closer is not None and self._ends_now(self._closer, left):
            done = len(reply) - (self._cut_at or 0)
            allowed[self._way[done] if done < len(self._way) else self._ends] = True
            return allowed
        if self._matcher.is_stopped() and not self._matcher.is_error():
            allowed[self._ends] = True
            return allowed
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise BadInputError(f"the grammar cannot be followed further ({one_line(self._matcher.get_error())})")
        bits = np.unpackbits(mask, bitorder="little")[: self._vocabulary]
        allowed[: len(bits)] = bits
        return allowed if self._closer is None else self._within(self._closer, allowed, left)

    def _within(self, closer: Closer, allowed: NDArray[np.bool_], left: int) -> NDArray[np.bool_]:
        """Those of the allowed tokens [V] behind which the end can be reached in time."""
        slack = left - self._needed
        if slack <= CLOSE and 1 < allowed.sum() <= FEW:
            tokens = [int(token) for token in np.flatnonzero(allowed)]
            late = [token for token in tokens if closer.length(self._matcher, self._places[-1], token) + SPARE >= left]
            if len(late) < len(tokens):
                allowed[late] = False
        if slack <= NEAR:
            calm = allowed & closer.without_more(self._places[-1])
            return calm if calm.any() else allowed
        return allowed

    def _ends_now(self, closer: Closer, left: int) -> bool:
        """Whether nothing is left to do but to end, on `_way` from `_cut_at` on."""
        if self._cut_at is None and left <= self._next_look:
            way = closer.way(self._matcher, self._places[-1]) or []
            self._needed = len(way) + SPARE
            slack = left - self._needed
            self._looked_at = len(self._taken)
            self._next_look = left - max(1, slack // 4)
            if slack <= 0 and way:
                self._cut_at, self._way = len(self._taken), way
        if self._cut_at is None:
            return False
        done = self._taken[self._cut_at :]
        if done != self._way[: len(done)]:
            self._way = [*done, *(closer.way(self._matcher, self._places[-1]) or [])]
        return True


class Grammars:
    """Makes constraints for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: Sequence[int]) -> None:
        """
        Args:
            vocabulary: logits a model gives, V.
            ends: the tokens that end a reply.

        Raises:
            MissingExtraError: llguidance is not installed.
            BadInputError: the model has no token that ends a reply, or a tokenizer that llguidance does not take.
        """
        try:
            import llguidance
        except ModuleNotFoundError as error:
            raise MissingExtraError("structured output", "schema", error) from error
        if not ends:
            raise BadInputError("structured output needs a token that ends a reply, and this bundle names none")
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer.to_str(), n_vocab=vocabulary, eos_token=list(ends))
        except Exception as error:  # llguidance raises several types
            raise BadInputError(f"structured output does not go with this tokenizer ({one_line(error)})") from error
        self._vocabulary, self._ends = vocabulary, list(ends)
        self._closer = Closer(tokenizer, vocabulary)
        self._lock = threading.Lock()
        self._latest: dict[Grammar, Any] = {}  # compiled once for several replies to a prompt

    def constraint(self, grammar: Grammar) -> Constraint:
        """The constraint of a reply.

        Raises:
            BadInputError: the grammar is not valid, or too large.
        """
        with self._lock:
            matcher = self._latest.pop(grammar, None)
        if matcher is None:
            matcher = self._compiled(grammar)
        with self._lock:
            self._latest[grammar] = matcher
            if len(self._latest) > MOST_LATEST:
                del self._latest[next(iter(self._latest))]
            closer = self._closer if grammar.is_json else None
            return Constraint(matcher.deep_copy(), self._vocabulary, self._ends, closer)

    def _compiled(self, grammar: Grammar) -> Any:
        from llguidance import LLMatcher

        make: dict[Kind, Callable[[str], str]] = {
            "json-schema": partial(LLMatcher.grammar_from_json_schema, defaults=JSON_STYLE),
            "regex": LLMatcher.grammar_from_regex,
            "lark": LLMatcher.grammar_from_lark,
        }
        try:
            matcher = LLMatcher(self._tokenizer, make[grammar.kind](grammar.text), log_level=0)
            if not matcher.is_error():
                matcher.compute_bitmask()  # some grammars fail only when the first tokens are looked for
        except BaseException as error:  # a panic in Rust is no `Exception`
            if from_outside(error):
                raise
            raise BadInputError(f"{grammar.kind}: {one_line(error)}") from error
        if matcher.is_error():
            raise BadInputError(f"{grammar.kind}: {one_line(matcher.get_error())}")
        return matcher
