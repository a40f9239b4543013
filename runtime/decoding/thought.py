"""Thoughts: what some models write between `<think>` and `</think>` before they answer, told from the answer.

A model thinks where its tokenizer has both markers as tokens, or where its chat template has both of them. A thought
stands at the beginning of a reply, or is open at the end of the prompt already; behind it, and in the replies of other
models, the markers are text like any other. White space beside them is part of neither thought nor answer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from rrt_edge.runtime.decoding.constraint import Allows
from rrt_edge.runtime.decoding.detokenizer import TextStream, overlap
from rrt_edge.runtime.errors import BadInputError

OPEN, CLOSE = "<think>", "</think>"
CLOSING = f"\n{CLOSE}\n\n"  # as models end a thought
PROMPT_END = 16  # tokens, in which a prompt that opens a thought has the marker


@dataclass(frozen=True)
class Thinking:
    """How a model thinks.

    Attributes:
        closing: the tokens that end a thought in the model's place.
        opening: the token that begins one, where it is one.
        special: the markers that are special tokens, which decoding skips.
    """

    closing: tuple[int, ...]
    opening: int | None = None
    special: Mapping[int, str] = field(default_factory=dict)

    def check_closing(self, vocabulary: int) -> None:
        """
        Raises:
            BadInputError: a model of so many tokens cannot end a thought.
        """
        if not all(token < vocabulary for token in self.closing):
            message = f"think-tokens: a token of {CLOSE} is not among the model's {vocabulary} tokens"
            raise BadInputError(message, "think_tokens")

    @classmethod
    def of(cls, tokenizer: Tokenizer, closing: Sequence[int]) -> Thinking:
        """
        Args:
            closing: the tokens of `CLOSING`.
        """
        added, opening = tokenizer.get_added_tokens_decoder(), tokenizer.token_to_id(OPEN)
        special = {id: token.content for id, token in added.items() if token.special and token.content in (OPEN, CLOSE)}
        return cls(tuple(closing), opening, special)


def has_markers(tokenizer: Tokenizer) -> bool:
    """Whether both markers are tokens."""
    return None not in (tokenizer.token_to_id(OPEN), tokenizer.token_to_id(CLOSE))


def opens_thought(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends with the beginning of a thought, as some chat templates have it."""
    end: str = tokenizer.decode(list(prompt[-PROMPT_END:]), skip_special_tokens=False)
    return end.rstrip().endswith(OPEN)


class Piece(NamedTuple):
    """What a token adds to the answer and to the thought, which is None where it is a token of the answer alone."""

    answer: str
    thought: str | None

    def joined(self, other: Piece) -> Piece:
        """Both, where the other follows with no token of its own."""
        return Piece(self.answer + other.answer, None if self.thought is None else self.thought + (other.thought or ""))


class ReplyText:
    """The text of one reply as its tokens come, thought and answer apart; stop strings count in the answer alone.

    Attributes:
        taken: tokens so far.
        opened: how many of them had come when the thought began, the marker included; None where there is none.
        closed: the same for its end; None while it goes on.
    """

    def __init__(self, stream: TextStream, thinking: Thinking | None = None, is_open: bool = False) -> None:
        """
        Args:
            stream: makes text of the tokens.
            thinking: where the reply may have a thought.
            is_open: it begins inside the thought.
        """
        self.taken = 0
        self.opened = 0 if is_open else None
        self.closed: int | None = None
        self._stream, self._special = stream, {} if thinking is None else thinking.special
        self._undecided = thinking is not None and not is_open  # nothing but white space has come
        self._held = ""  # text that may belong to a marker or to the white space beside it
        self._bare = True  # the thought, or the answer behind it, has not begun but for white space

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; no text follows."""
        return self._stream.stopped

    @property
    def thinks(self) -> bool:
        """Whether the next token is one of a thought."""
        return self.opened is not None and self.closed is None

    @property
    def _answers(self) -> bool:
        """Whether all text to come is the answer's."""
        return not (self._undecided or self.thinks or (self.closed is not None and self._bare))

    def push(self, token: int) -> Piece:
        """What this token completes."""
        self.taken += 1
        if self._answers:
            return Piece(self._stream.push(token), None)
        marker = self._special.get(token)
        if marker is not None and marker == (CLOSE if self.thinks else OPEN if self._undecided else None):
            return self._split(self._stream.rest() + marker)
        return self._split(self._stream.characters(token))

    def end(self) -> Piece:
        """What was held back, at the end of the reply."""
        if self._answers:
            return Piece(self._stream.flush(), None)
        piece = self._split(self._stream.rest(), last=True)
        return Piece(piece.answer + self._stream.finish(""), piece.thought)

    def _split(self, text: str, last: bool = False) -> Piece:
        thought = "" if self.thinks else None
        text, self._held = self._held + text, ""
        if self._undecided:
            start = text.lstrip()
            if not last and start != OPEN and OPEN.startswith(start):
                self._held = text
                return Piece("", None)
            self._undecided = False
            if start.startswith(OPEN):
                self.opened, text, thought = self.taken, start.removeprefix(OPEN), ""
        if self.thinks:
            thought, text = self._thought(text.lstrip() if self._bare else text, last)
        if self.closed is not None and self._bare:
            text = text.lstrip()
            self._bare = not text
        return Piece(self._stream.until_stop(text), thought)

    def _thought(self, text: str, last: bool) -> tuple[str, str]:
        """What may be shown of a thought, and the text of the answer behind it."""
        thought, marker, answer = text.partition(CLOSE)
        if marker:
            self.closed, self._bare = self.taken, True
            return thought.rstrip(), answer
        if not last:
            thought = text[: len(text) - overlap(text, CLOSE)].rstrip()
            self._held = text[len(thought) :]
        self._bare = self._bare and not thought
        return thought, ""


class ThoughtRule:
    """Which tokens may come next in a reply that may have a thought: its budget ends it, a grammar holds behind it."""

    def __init__(
        self,
        text: ReplyText,
        thinking: Thinking,
        budget: int | None,
        grammar: Allows | None,
        vocabulary: int,
        ends: Collection[int],
    ) -> None:
        """
        Args:
            text: of the reply, which knows where the thought stands.
            budget: tokens after which the thought is ended.
            grammar: what the answer must be.
            vocabulary: logits a model gives, V.
            ends: the tokens that end a reply, which a thought must not where an answer has to follow.
        """
        self._text, self._thinking, self._grammar = text, thinking, grammar
        self._budget, self._vocabulary, self._ends = budget, vocabulary, list(ends)

    @property
    def cut(self) -> bool:
        """Whether the answer is as it is because it had to end."""
        return self._grammar is not None and self._grammar.cut

    def allowed(self, reply: Sequence[int], left: int) -> NDArray[np.bool_] | None:
        """[V]: the tokens that may follow the tokens of a reply, drafts behind those that it has included; None: all.

        Args:
            left: tokens that the reply may still have.

        Raises:
            BadInputError: as `Constraint.allowed`.
        """
        opened, closed = self._text.opened, self._text.closed
        if opened is None:
            return self._without_thought(reply, left)
        answer = closed
        if self._budget is not None and (closed is None or closed > opened + self._budget):
            forced = len(reply) - opened - self._budget  # those that were, of the tokens that end it
            if 0 <= forced < len(self._thinking.closing):
                return self._only(self._thinking.closing[forced])
            answer = opened + self._budget + len(self._thinking.closing) if closed is not None else None
        if self._grammar is None:
            return None
        if answer is not None:
            return self._grammar.allowed(reply[answer:], left)
        allowed = np.ones(self._vocabulary, np.bool_)
        allowed[self._ends] = False
        return allowed

    def _without_thought(self, reply: Sequence[int], left: int) -> NDArray[np.bool_] | None:
        """A reply without a thought so far, which may begin with one if that takes one token."""
        opening = self._thinking.opening
        if self._grammar is None or (opening is not None and reply[:1] == [opening]):
            return None
        allowed = self._grammar.allowed(reply, left)
        if allowed is not None and opening is not None and opening < self._vocabulary and not reply:
            allowed[opening] = True
        return allowed

    def _only(self, token: int) -> NDArray[np.bool_]:
        allowed = np.zeros(self._vocabulary, np.bool_)
        allowed[token] = True
        return allowed
