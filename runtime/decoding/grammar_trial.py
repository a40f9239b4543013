"""Whether a grammar of a stranger can be compiled, tried in a child process that can be ended.

Some schemas of a few thousand characters take minutes and gigabytes; no limit of llguidance's bounds all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

from rrt_edge.runtime.decoding.constraint import Grammars
from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.system.children import Asking, Children, Limits

LIMITS = Limits(seconds=2, memory_bytes=256 << 20)  # for a grammar to be compiled, and its first tokens to be known


class GrammarTrials:
    """Tries grammars for one tokenizer."""

    def __init__(self, tokenizer: Tokenizer, vocabulary: int, ends: Sequence[int], seconds: float, most: int) -> None:
        """As `Grammars`; `seconds` of processor time for each, and so many at a time."""
        limits = Limits(seconds, LIMITS.memory_bytes)
        setup = {"tokenizer": tokenizer.to_str(), "vocabulary": vocabulary, "ends": list(ends)}
        self._children = Children("rrt_edge.runtime.decoding.grammar_trial", setup, limits, most)

    def check(self, grammar: Grammar, asking: Asking | None = None) -> None:
        """Compile a grammar in a child; `asking` lets another thread leave it.

        Raises:
            TooSlowError: the grammar takes too much time.
            BadInputError: it is not valid, or takes too much memory.
        """
        self._children.ask({"kind": grammar.kind, "text": grammar.text}, grammar.kind, asking)

    def close(self) -> None:
        """End what is being tried."""
        self._children.close()


def begin(setup: Mapping[str, Any]) -> Callable[[Any], None]:
    grammars = Grammars(Tokenizer.from_str(setup["tokenizer"]), setup["vocabulary"], setup["ends"])

    def answer(question: Any) -> None:
        grammars.constraint(Grammar(question["kind"], question["text"]))

    return answer
