"""The bundle's tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from rrt_edge.runtime.errors import BundleError


def read_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BundleError: tokenizer.json cannot be read.
    """
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise BundleError(f"{folder / 'tokenizer.json'}: cannot be read ({error})") from error
