"""Whether a tokenizer of a stranger can be read and used, tried in a child process that can be ended.

What its file may hold is bounded (`tokenizer`), what it does with a text is not: a pattern may be tried for ever, and a
library in Rust may end its process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rrt_edge.runtime.bundle.tokenizer import read_tokenizer
from rrt_edge.runtime.errors import BadInputError, BundleError
from rrt_edge.runtime.system.children import Children, Limits

LIMITS = Limits(seconds=30, memory_bytes=4 << 30)  # tokenizers of 30 MB take 2 s and 1 GiB
LETTERS = "".join(map(chr, range(0x20, 0x7F)))
FIRST_TEXT = "\n".join(
    (
        LETTERS, "a" * 200, " " * 200, "0" * 100, "The quick brown fox, isn't it?\t12,345.67 km/h", "ab" * 100 + "!",
        "Grüße, ça va? Привет, мир. こんにちは世界 안녕 नमस्ते 🙂👩‍👩‍👧 e\u0301 \u200b\ufeff ½ ﬁ",
    )
)  # fmt: skip
MOST_TOKENS = 100 * len(FIRST_TEXT)


def try_tokenizer(folder: Path, vocabulary: int) -> None:
    """Read the tokenizer of a bundle in a child, encode a first text there and decode what it becomes.

    Args:
        vocabulary: tokens that the model has.

    Raises:
        BundleError: it cannot be used, takes too much time or memory, or makes tokens that the model does not have.
        RRTEdgeError: no child can be started.
    """
    children = Children(__name__, None, LIMITS, most=1)
    what = f"{folder / 'tokenizer.json'}: encoding a first text"
    try:
        children.ask({"folder": str(folder), "vocabulary": vocabulary, "what": what}, what)
    except BadInputError as error:
        raise BundleError(str(error)) from error
    finally:
        children.close()


def begin(_: None) -> Callable[[dict[str, Any]], None]:
    def answer(question: dict[str, Any]) -> None:
        tokenizer, what = read_tokenizer(Path(question["folder"])), question["what"]
        ids = tokenizer.encode(FIRST_TEXT).ids
        if len(ids) > MOST_TOKENS:
            raise BadInputError(f"{what}: makes {len(ids):,} tokens of {len(FIRST_TEXT)} characters")
        if max(ids, default=0) >= question["vocabulary"]:
            raise BadInputError(f"{what}: token id {max(ids)} is not among the model's {question['vocabulary']} tokens")
        tokenizer.decode(ids)

    return answer
