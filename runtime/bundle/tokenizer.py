"""The bundle's tokenizer, which whoever made the bundle wrote: what it may make of a text is bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from rrt_edge.runtime.errors import BundleError, from_outside, in_words

LARGEST = 256 << 20  # bytes of tokenizer.json
LONGEST = 1000  # characters of a text in it, but for the vocabulary and compiled tables
MOST_GROWTH = 1000  # characters that all replacements together may make of one
MOST_PARTS = 1000  # values that a part of it has
COMPILED = "precompiled_charsmap"  # SentencePiece's table, which replaces by less than LONGEST characters


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle. It neither pads nor cuts, whatever its file says: that is the caller's to decide.

    Raises:
        BundleError: tokenizer.json cannot be read, or may make more of a text than memory holds.
    """
    path = folder / "tokenizer.json"
    try:
        if path.stat().st_size > LARGEST:
            raise BundleError(f"{path}: has more than {LARGEST >> 20} MiB; no tokenizer has")
        tokenizer = Tokenizer.from_file(str(path))
    except BundleError:
        raise
    except BaseException as error:  # tokenizers raises plain Exception, and a panic in Rust is none
        if from_outside(error):
            raise
        raise BundleError(f"{path}: cannot be read ({in_words(error)})") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    _check_growth(path, tokenizer)
    return tokenizer


def _check_growth(path: Path, tokenizer: Tokenizer) -> None:
    """
    Raises:
        BundleError: a text or a part of the tokenizer is too long, or what it replaces grows too much.
    """
    for name in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        part = getattr(tokenizer, name)
        values = list(_values(json.loads(part.__getstate__()), "")) if part is not None else []
        growth = 1
        for key, value in values:
            if isinstance(value, str) and len(value) > LONGEST and key != COMPILED:
                raise BundleError(f"{path}: {name}: {key} has {len(value):,} characters; {LONGEST:,} are allowed")
            growth *= max(1, len(value)) if key == "content" and isinstance(value, str) else 1
        if growth > MOST_GROWTH or len(values) > MOST_PARTS:
            raise BundleError(f"{path}: {name}: makes too much of a text; is this a tokenizer that somebody uses?")
    longest = max((len(token.content) for token in tokenizer.get_added_tokens_decoder().values()), default=0)
    if longest > LONGEST:
        raise BundleError(f"{path}: added_tokens: one has {longest:,} characters; {LONGEST:,} are allowed")


def _values(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """The values in a JSON document that hold no others, each with the nearest name; names come as values too."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield "name", name
            yield from _values(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _values(inner, key)
    else:
        yield key, value
