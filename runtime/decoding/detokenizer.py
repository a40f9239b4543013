"""Tokens to text as they come: whole characters only, and no further than a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders put for bytes that are no whole character (yet)
UNFINISHED = 3  # bytes that an unfinished UTF-8 character has at most, each of which may show as one INCOMPLETE
WINDOW = 16  # pending tokens at most; only a run of broken bytes is longer than an unfinished character
OVERLAP = 8  # pending tokens kept of such a run


class TextStream:
    """Turns token ids into text, piece by piece; the pieces join to what the tokenizer decodes from all ids.

    A token's text can depend on the one before it (leading spaces, bytes of one character), so each piece is what the
    pending tokens add to the text of those just before them. Tokens that decoding skips are no part of either.

    Broken bytes become replacement characters. Where a tokenizer falls back to single bytes, decoding all ids also
    breaks the whole characters beside them; the stream has given those out by then and keeps them.

    Args:
        tokenizer: decodes; its special tokens are skipped.
        stop: texts, none empty, at the first of which to be complete the text ends (at the longest of several that
            are complete at the same character).
        before: the tokens of a text that goes on, where the first piece is to be as it is behind them.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._special = {token for token, added in tokenizer.get_added_tokens_decoder().items() if added.special}
        self._stop = tuple(stop)
        self._stopped = False
        self._context = list(before[-OVERLAP:])  # tokens whose text was given out, last before the pending ones
        self._pending: list[int] = []  # tokens since the text last ended in a whole character
        self._given = 0  # characters of the pending tokens' text that were given out
        self._held = ""  # text that may be the beginning of a stop string

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come; no text follows."""
        return self._stopped

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character or a stop string may still go on."""
        return self.until_stop(self.characters(token))

    def flush(self) -> str:
        """Return the text that was held back, at the end of the reply."""
        return self.finish(self.rest())

    def characters(self, token: int) -> str:
        """The text that this token completes, wherever the text ends; empty while a character may still go on."""
        if self._stopped or token in self._special or self._tokenizer.id_to_token(token) is None:
            return ""
        self._pending.append(token)
        text = self._pending_text()
        unfinished = min(len(text) - len(text.rstrip(INCOMPLETE)), UNFINISHED)
        whole = len(text) - unfinished
        piece = text[self._given : whole]
        self._given = max(self._given, whole)
        if text and not unfinished:
            self._context, self._pending, self._given = self._pending, [], 0
        elif len(self._pending) > WINDOW:
            self._shorten(len(text) - self._given)
        return piece

    def rest(self) -> str:
        """The text of tokens whose last character is unfinished, and will be."""
        piece = self._pending_text()[self._given :]
        self._context, self._pending, self._given = [], [], 0
        return piece

    def _pending_text(self) -> str:
        """Return the text that the pending tokens add to that of the tokens before them."""
        known: str = self._tokenizer.decode(self._context)
        text: str = self._tokenizer.decode(self._context + self._pending)
        if text.startswith(known):
            return text[len(known) :]
        alone: str = self._tokenizer.decode(self._pending)  # broken bytes reach back into the context
        return alone

    def _shorten(self, waiting: int) -> None:
        """Forget the oldest pending tokens; `waiting` characters at the end of their text were not given out."""
        self._context, self._pending = [], self._pending[-OVERLAP:]
        self._given = max(0, len(self._pending_text()) - waiting)

    def finish(self, text: str) -> str:
        """The last of the text, with what was held back for a stop string."""
        piece = self.until_stop(text)
        rest, self._held = self._held, ""
        return piece + rest

    def until_stop(self, text: str) -> str:
        """Pass text on up to a stop string, holding back what may begin one."""
        if self._stopped:
            return ""
        if not self._stop:
            return text
        text = self._held + text
        starts = [(text.find(stop), stop) for stop in self._stop]
        spans = [(start + len(stop), start) for start, stop in starts if start >= 0]
        if spans:
            self._stopped, self._held = True, ""
            _, start = min(spans)
            return text[:start]
        keep = max(overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
