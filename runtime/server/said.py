"""What a reply says as its tokens come: words, and calls of functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rrt_edge.runtime.decoding.reply import Token
from rrt_edge.runtime.decoding.tool_calls import Said
from rrt_edge.runtime.server.tools import Tools


class ReplyReader:
    """Tells the calls in one reply from its words; `tells_calls`: there may be some that can be told."""

    def __init__(self, tools: Tools | None) -> None:
        self._tools = tools
        self._calls = None if tools is None else tools.reader()
        self.tells_calls = self._calls is not None

    def read(self, tokens: Sequence[Token], last: bool) -> Said:
        """What the tokens that come next add; `last`: no others come."""
        if self._tools is None or self._calls is None:
            return Said("".join(token.text for token in tokens))
        said = self._calls.push("".join(map(self._tools.words, tokens)))
        if last:
            rest = self._calls.end()
            said = Said(said.content + rest.content, [*said.calls, *rest.calls])
        return said

    @property
    def called(self) -> bool:
        """Whether a function has been called."""
        return self._calls is not None and self._calls.count > 0


def calls_of(said: Said) -> list[dict[str, Any]]:
    """The calls of a whole reply, each with `id`, `name` and `arguments`, a text of JSON."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in said.calls:
        if piece.name is not None:
            calls[piece.index] = {"id": piece.id, "name": piece.name, "arguments": ""}
        calls[piece.index]["arguments"] += piece.arguments
    return list(calls.values())
