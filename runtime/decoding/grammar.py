"""Structured output: a reply that follows a JSON schema, a regular expression or a Lark grammar, through llguidance."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rrt_edge.runtime.errors import BadInputError, MissingExtraError, RRTEdgeError

Kind = Literal["json-schema", "regex", "lark"]
LONGEST = 100_000  # characters: far above any schema that a reply could follow
# JSON as json.dumps writes it: small models would fill replies with the white space that JSON allows everywhere.
JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


@dataclass(frozen=True)
class Grammar:
    """What a reply must be. Made by `json_schema`, `regex` or `lark`; a model checks it when it is first used."""

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if len(self.text) > LONGEST:
            raise BadInputError(f"{self.kind}: {len(self.text):,} characters; {LONGEST:,} are the most that is taken")

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> Grammar:
        """A JSON document that a schema (draft 2020-12) allows, on one line; `{}` allows any.

        Raises:
            BadInputError: the text is not JSON, or no schema.
        """
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except ValueError as error:
                raise BadInputError(f"json-schema: not valid JSON ({error})") from error
        if not isinstance(schema, Mapping | bool):
            raise BadInputError("json-schema: must be a JSON object")
        return cls("json-schema", json.dumps(schema))

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression (Rust's syntax) matches as a whole."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A text of the language of a Lark grammar, as llguidance reads it; it begins with the rule `start`."""
        return cls("lark", text)


class Constraint:
    """Which tokens may come next in one reply."""

    def __init__(self, matcher: Any, vocabulary: int, ends: Sequence[int]) -> None:
        self._matcher, self._vocabulary, self._ends = matcher, vocabulary, list(ends)
        self._taken: list[int] = []

    def allowed(self, reply: Sequence[int]) -> NDArray[np.bool_]:
        """[V]: the tokens that may follow the tokens of a reply; it may be another than the last one's beginning.

        Raises:
            RRTEdgeError: the grammar became too complex for its parser.
        """
        common = 0
        for held, asked in zip(self._taken, reply, strict=False):
            if held != asked:
                break
            common += 1
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
            raise RRTEdgeError(f"the grammar cannot be followed further ({_one_line(self._matcher.get_error())})")
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
            raise BadInputError(f"structured output does not go with this tokenizer ({_one_line(error)})") from error
        self._vocabulary, self._ends = vocabulary, list(ends)

    def constraint(self, grammar: Grammar) -> Constraint:
        """The constraint of a reply.

        Raises:
            BadInputError: the grammar is not valid, or too large.
        """
        from llguidance import LLMatcher

        make: dict[Kind, Callable[[str], str]] = {
            "json-schema": partial(LLMatcher.grammar_from_json_schema, defaults=JSON_STYLE),
            "regex": LLMatcher.grammar_from_regex,
            "lark": LLMatcher.grammar_from_lark,
        }
        try:
            matcher = LLMatcher(self._tokenizer, make[grammar.kind](grammar.text), log_level=0)
        except Exception as error:
            raise BadInputError(f"{grammar.kind}: {_one_line(error)}") from error
        if matcher.is_error():
            raise BadInputError(f"{grammar.kind}: {_one_line(matcher.get_error())}")
        return Constraint(matcher, self._vocabulary, self._ends)


def _one_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:300]
