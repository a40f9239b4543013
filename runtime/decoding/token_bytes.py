"""The bytes of single tokens, which may be a part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer

FALLBACK = re.compile("<0x([0-9A-Fa-f]{2})>")  # how SentencePiece calls a token that is a byte


class TokenBytes:
    """What each token adds to the bytes of a text.

    The tokens' bytes join to the text, but for a space before the first word, which some tokenizers leave out.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        decoder = tokenizer.decoder
        kinds = set() if decoder is None else set(_kinds(json.loads(decoder.__getstate__())))
        self._of_letter = _byte_level() if "ByteLevel" in kinds else None
        self._falls_back = "ByteFallback" in kinds
        self._added = {id: token.content.encode() for id, token in tokenizer.get_added_tokens_decoder().items()}

    def __call__(self, token: int) -> bytes:
        """The bytes of a token; of special tokens, those of their names."""
        name: str | None = self._tokenizer.id_to_token(token)
        if name is None:
            return b""  # logits that no token has
        byte = FALLBACK.fullmatch(name) if self._falls_back else None
        if byte is not None:
            return bytes([int(byte[1], 16)])
        if token in self._added:
            return self._added[token]
        if self._of_letter is not None and all(letter in self._of_letter for letter in name):
            return bytes(self._of_letter[letter] for letter in name)
        alone: str = self._tokenizer.decode([token])
        twice: str = self._tokenizer.decode([token, token])  # the second as it is behind other text, its space included
        return (twice.removeprefix(alone) if twice.startswith(alone) else alone).encode()


def in_text(content: bytes) -> str:
    r"""Bytes as a text; those that are no whole character as `\xe2\x80`."""
    return content.decode("utf-8", "backslashreplace")


def _kinds(state: Any) -> Iterator[str]:
    """The types of a decoder and of those it is made of."""
    if isinstance(state, dict):
        if isinstance(state.get("type"), str):
            yield state["type"]
        for value in state.values():
            yield from _kinds(value)
    elif isinstance(state, list):
        for value in state:
            yield from _kinds(value)


def _byte_level() -> dict[str, int]:
    """GPT-2's letters for bytes: printable ones stand for themselves, the others for letters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + at): byte for at, byte in enumerate(others)}
