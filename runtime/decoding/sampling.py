"""`Sampling`: how tokens are to be chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import TYPE_CHECKING, ClassVar

from rrt_edge.runtime.errors import BadInputError

if TYPE_CHECKING:
    from rrt_edge.runtime.decoding.grammar import Grammar


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_k: only the k likeliest; 0: all.
        top_p: only the likeliest that together reach this probability.
        min_p: only those with at least this share of the likeliest's probability.
        typical_p: only the most typical that together reach this probability (arXiv 2202.00666).
        repetition_penalty: above 1, tokens already in the text become less likely (CTRL, arXiv 1909.05858).
        presence_penalty: taken off the logits of tokens already in the reply, from -2 to 2.
        frequency_penalty: the same for each time they are there.
        logit_bias: added to the logits of these token ids; -100 bans, 100 all but forces.
        seed: makes sampling repeatable.
        n: replies that `Session.choices` gives.
        max_tokens: tokens generated at most.
        min_tokens: tokens before which nothing that ends a reply is chosen.
        stop: texts that end the generation; they are not part of it.
        stop_ids: token ids that end it, beside the model's own.
        logprobs: tell each token's log probability, and so many of the likeliest tokens with theirs (0 to 20); by
            default neither. They are of the model's own distribution, before anything above changes it.
        grammar: what the reply must be: a JSON schema, a regular expression or a Lark grammar.

    Raises:
        BadInputError: a value is out of range; names the field.
    """

    MOST_LOGPROBS: ClassVar = 20

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    n: int = 1
    max_tokens: int = 256
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        checks = {
            "temperature": (_is_number(self.temperature) and 0 <= self.temperature < math.inf, "a number, 0 or more"),
            "top_k": (_is_whole(self.top_k) and self.top_k >= 0, "a whole number, 0 or more"),
            "top_p": (_is_number(self.top_p) and 0 < self.top_p <= 1, "a number above 0 and at most 1"),
            "min_p": (_is_number(self.min_p) and 0 <= self.min_p <= 1, "a number from 0 to 1"),
            "typical_p": (_is_number(self.typical_p) and 0 < self.typical_p <= 1, "a number above 0 and at most 1"),
            "repetition_penalty": (
                _is_number(self.repetition_penalty) and 0 < self.repetition_penalty < math.inf,
                "a number above 0",
            ),
            "presence_penalty": (_is_penalty(self.presence_penalty), "a number from -2 to 2"),
            "frequency_penalty": (_is_penalty(self.frequency_penalty), "a number from -2 to 2"),
            "logit_bias": (_is_bias(self.logit_bias), "numbers from -100 to 100 by token id"),
            "seed": (
                self.seed is None or (_is_whole(self.seed) and self.seed >= 0),
                "a whole number, 0 or more, or none",
            ),
            "n": (_is_whole(self.n) and self.n >= 1, "a whole number, 1 or more"),
            "max_tokens": (_is_whole(self.max_tokens) and self.max_tokens >= 1, "a whole number, 1 or more"),
            "min_tokens": (_is_whole(self.min_tokens) and self.min_tokens >= 0, "a whole number, 0 or more"),
            "stop": (_is_texts(self.stop), "a tuple of texts that are not empty"),
            "stop_ids": (_is_ids(self.stop_ids), "a tuple of token ids"),
            "logprobs": (
                self.logprobs is None or (_is_whole(self.logprobs) and 0 <= self.logprobs <= self.MOST_LOGPROBS),
                f"a whole number from 0 to {self.MOST_LOGPROBS}, or none",
            ),
        }
        for name, (right, wanted) in checks.items():
            if not right:
                raise BadInputError(f"{name.replace('_', '-')} {getattr(self, name)!r}: must be {wanted}")
        if self.min_tokens > self.max_tokens:
            raise BadInputError(f"min-tokens {self.min_tokens}: must not be above max-tokens {self.max_tokens}")

    def choice(self, index: int) -> Sampling:
        """Of the reply `index` of several to one prompt: its seed is `seed + index`."""
        return self if self.seed is None else replace(self, seed=self.seed + index)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_penalty(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and abs(float(value)) <= 2


def _is_texts(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(text, str) and text for text in value)


def _is_ids(value: object) -> bool:
    return isinstance(value, tuple) and all(_is_whole(token) and token >= 0 for token in value)


def _is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(
        _is_whole(token) and token >= 0 and _is_number(bias) and -100 <= bias <= 100 for token, bias in value.items()
    )
