"""Which tokens a grammar lets come next, through llguidance."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rrt_edge.runtime.decoding.common_prefix import common_prefix
from rrt_edge.runtime.decoding.grammar import Grammar, Kind
from rrt_edge.runtime.errors import BadInputError, MissingExtraError, from_outside, one_line

MOST_LATEST = 4  # grammars kept compiled: one for each that is compiled at a time
# JSON as json.dumps writes it: small models would fill replies with the white space that JSON allows everywhere.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Allows(Protocol):
    """Says which tokens [V] may follow the tokens of a reply; None: all."""

    def allowed(self, reply: Sequence[int]) -> NDArray[np.bool_] | None: ...


class Constraint:
    """Which tokens may come next in one reply."""

    def __init__(self, matcher: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, list(ends)
        self._taken: list[int] = []

    def allowed(self, reply: Sequence[int]) -> NDArray[np.bool_]:
        """[V]: the tokens that may follow the tokens of a reply; it may be another than the last one's beginning.

        Raises:
            BadInputError: the grammar became too complex for its parser.
        """
        common = common_prefix(self._taken, reply)
        if common < len(self._taken):
            self._matcher.rollback(len(self._taken) - common)
        new = list(reply[common:])
        if new:
            self._matcher.consume_tokens(new)
        self._taken = list(reply)
        allowed = np.zeros(self._vocabulary, np.bool_)
        if self._matcher.is_stopped() and not self._matcher.is_error():
            allowed[self._ends] = True
            return allowed
        mask = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise BadInputError(f"the grammar cannot be followed further ({one_line(self._matcher.get_error())})")
        bits = np.unpackbits(mask, bitorder="little")[: self._vocabulary]
        allowed[: len(bits)] = bits
        return allowed


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
            return Constraint(matcher.deep_copy(), self._vocabulary, self._ends)

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
