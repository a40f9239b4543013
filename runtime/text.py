"""Tokens to text as they come: whole characters only, and no further than a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what decoders put for bytes that are no whole character (yet)
LONGEST_CHARACTER = 8  # tokens that can belong to one unfinished character; more are broken bytes for good


class TextStream:
    """Turns token ids into text, piece by piece.

    A token's text can depend on the one before it (leading spaces, bytes of one character), so each piece is what
    decoding the last few tokens adds to decoding them without the newest.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []  # a window: context already given out, then what is not yet
        self._given = 0  # tokens of the window whose text was given out
        self._held = ""  # text that may be the beginning of a stop string

    def push(self, token: int) -> str:
        """The text that this token completes; empty while a character or a stop string may still go on."""
        if self.stopped:
            return ""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(INCOMPLETE) and len(self._ids) - self._given < LONGEST_CHARACTER:
            return ""
        self._advance()
        return self._until_stop(text)

    def flush(self) -> str:
        """What is left at the end of the reply."""
        if self.stopped:
            return ""
        text = self._new_text()
        self._advance()
        rest = self._until_stop(text)
        held, self._held = self._held, ""
        return rest if self.stopped else rest + held

    def _new_text(self) -> str:
        """The text of the window behind what was given out."""
        known: str = self._tokenizer.decode(self._ids[: self._given])
        whole: str = self._tokenizer.decode(self._ids)
        return whole[len(known) :]

    def _advance(self) -> None:
        """Keep the tokens just given out as the context of the next."""
        self._ids = self._ids[self._given :]
        self._given = len(self._ids)

    def _until_stop(self, text: str) -> str:
        """Pass text on up to a stop string, holding back what may begin one."""
        if not self._stop:
            return text
        text = self._held + text
        found = [index for index in (text.find(stop) for stop in self._stop) if index >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
