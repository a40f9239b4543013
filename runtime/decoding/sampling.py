"""`Sampling`: how tokens are to be chosen.

A new way to choose is a field here, from which checks, flags, the server's fields and `llm`'s options are made, and a
function in `logits` that the `Sampler` calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.names import changed_fields, init_says_meant
from rrt_edge.runtime.system.options import check_options, option, plain_number, shown

MOST_COUNT = (1 << 31) - 1  # of tokens, ids and replies: no model has as many
SEEDS = 1 << 64  # a negative seed stands for the one that is so much larger
MAKERS = "Grammar.json_schema(schema), Grammar.regex(pattern) or Grammar.lark(text)"
LONGEST_STOP = 1000  # characters: each token's text is searched for it


def _is_id(value: object) -> bool:
    number = plain_number(value, int)
    return number is not None and 0 <= number <= MOST_COUNT


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= LONGEST_STOP


def _is_penalty(value: Any) -> bool:
    number = plain_number(value, float)
    return number is not None and -100 <= number <= 100


def _is_bias(value: object) -> bool:
    return isinstance(value, Mapping) and all(_is_id(token) and _is_penalty(bias) for token, bias in value.items())


def _read_bias(pairs: Any) -> dict[int, float]:
    """The biases of texts like 42=-100."""
    biases = {}
    for pair in pairs:
        token, _, bias = pair.partition("=")
        try:
            biases[int(token)] = float(bias)
        except ValueError:
            raise BadInputError(f"logit-bias {pair!r}: must be a token id and a number, like 42=-100") from None
    return biases


@init_says_meant
@dataclass(frozen=True, repr=False)
class Sampling:
    """How tokens are chosen.

    Attributes:
        temperature: 0 always takes the likeliest token.
        top_k: only the k likeliest; 0: all.
        top_p: only the likeliest that together reach this probability; 0: the likeliest alone.
        min_p: only those with at least this share of the likeliest's probability.
        typical_p: only the most typical that together reach this probability (arXiv 2202.00666).
        repetition_penalty: above 1, tokens already in the text become less likely (CTRL, arXiv 1909.05858).
        presence_penalty: taken off the logits of tokens already in the reply, from -2 to 2.
        frequency_penalty: the same for each time they are there.
        logit_bias: added to the logits of these token ids; -100 bans, 100 all but forces.
        seed: makes sampling repeatable; signed or not, of 64 bits.
        n: replies that `Session.choices` gives.
        max_tokens: tokens generated at most.
        max_length: tokens of prompt and reply together at most; a prompt that has as many already is not bounded by it.
        think_tokens: tokens of a thought (docs/run.md) after which it is ended and the answer follows; 0 ends it at
            once, None leaves it to the model. Where the model does not think, it means nothing.
        min_tokens: tokens before which nothing that ends a reply is chosen.
        stop: texts that end the generation where the answer has them; they are not part of it.
        stop_ids: token ids that end it, beside the model's own.
        logprobs: tell each token's log probability, and so many of the likeliest tokens with theirs (0 to 20); by
            default neither. They are of the model's own distribution, before anything above changes it.
        first_loop: tell what the first loop alone would have said in each token's place (`Token.first_loop`), which
            costs a token that goes deeper the LM head once more.
        grammar: what the answer must be: a JSON schema, a regular expression or a Lark grammar.

    Raises:
        BadInputError: a value is out of range; names the field.
    """

    MOST_LOGPROBS: ClassVar[int] = 20

    temperature: float = option(0.0, "0 always takes the likeliest token.", least=0, most=1e300)
    top_k: int = option(0, "Only the k likeliest; 0: all.", least=0, most=MOST_COUNT)
    top_p: float = option(1.0, "Only the likeliest that make up this share.", least=0, most=1)
    min_p: float = option(0.0, "Only those with this share of the likeliest's.", least=0, most=1)
    typical_p: float = option(1.0, "Only the most typical of this share.", above=0, most=1)
    repetition_penalty: float = option(1.0, "Above 1: repeats less.", least=1e-45, most=1e38)
    presence_penalty: float = option(0.0, "Against tokens the reply has.", least=-2, most=2)
    frequency_penalty: float = option(0.0, "The same for each time it has them.", least=-2, most=2)
    logit_bias: Mapping[int, float] = option(
        {}, "Add to a token's logit; repeatable.", check=_is_bias, allowed="numbers from -100 to 100 by token id",
        parse=_read_bias, metavar="ID=BIAS",
    )  # fmt: skip
    seed: int | None = option(None, "Makes sampling repeatable.", least=-(SEEDS >> 1), most=SEEDS - 1)
    n: int = option(1, "Replies to the prompt.", least=1, most=MOST_COUNT)
    max_tokens: int = option(256, "Tokens generated at most.", least=1, most=MOST_COUNT, section="How long a reply is")
    think_tokens: int | None = option(
        None, "Tokens of a thought at most; 0: none.", least=0, most=MOST_COUNT, unset="as many as the model writes"
    )
    min_tokens: int = option(0, "Tokens before which nothing ends the reply.", least=0, most=MOST_COUNT)
    stop: tuple[str, ...] = option(
        (), "End where this text comes; may be given several times.", check=_is_text,
        allowed=f"a text, or several, of 1 to {LONGEST_STOP} characters",
    )  # fmt: skip
    stop_ids: tuple[int, ...] = option(
        (), "End at this token id; repeatable.", check=_is_id, allowed="a token id, or several", flag="stop-id"
    )
    logprobs: int | None = option(
        None, "With --json: log probabilities, and so many likeliest tokens'.", least=0, most=MOST_LOGPROBS,
        section="What is told of each token",
    )  # fmt: skip
    first_loop: bool = option(False, "With --json: what the first loop would have said.")
    max_length: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, kind in (("stop", str), ("stop_ids", int)):  # one alone, or a list of them, is what was meant
            value = getattr(self, name)
            if isinstance(value, kind | list):
                object.__setattr__(self, name, tuple(value) if isinstance(value, list) else (value,))
        check_options(self)
        bias = {int(token): float(bias) for token, bias in self.logit_bias.items()}
        object.__setattr__(self, "logit_bias", bias)
        object.__setattr__(self, "stop_ids", tuple(int(token) for token in self.stop_ids))
        if not (self.max_length is None or (plain_number(self.max_length, int) or 0) >= 1):
            message = f"max-length {shown(self.max_length)}: must be a whole number, 1 or more, or none"
            raise BadInputError(message, "max_length")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            message = f"grammar {shown(self.grammar)}: must be a Grammar; give {MAKERS}"
            raise BadInputError(message, "grammar")
        if self.min_tokens > self.max_tokens:
            message = f"min-tokens {self.min_tokens}: must not be above max-tokens {self.max_tokens}"
            raise BadInputError(message, "min_tokens")

    def __repr__(self) -> str:
        return changed_fields(self)

    def check_tokens(self, vocabulary: int) -> None:
        """
        Raises:
            BadInputError: an option names a token that a model of so many does not have.
        """
        for name, tokens in (("logit_bias", self.logit_bias), ("stop_ids", self.stop_ids)):
            unknown = [token for token in tokens if token >= vocabulary]
            if unknown:
                label = name.replace("_", "-")
                message = f"{label}: token id {unknown[0]} is not among the model's {vocabulary} tokens"
                raise BadInputError(message, name)

    def most_tokens(self, prompt_tokens: int) -> int:
        """Tokens at most of the reply to a prompt of so many."""
        room = 0 if self.max_length is None else self.max_length - prompt_tokens
        return min(self.max_tokens, room) if room > 0 else self.max_tokens

    def choice(self, index: int) -> Sampling:
        """Return the sampling of reply number `index` to a prompt: its seed is `seed + index`."""
        return self if self.seed is None else replace(self, seed=(self.seed + index) % SEEDS)
