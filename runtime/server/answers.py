"""Replies as OpenAI's chats and completions tell them, whole or in chunks, and what of ours stands beside it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.decoding.tool_calls import CallPiece, Said
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.door import Ask, Door, Stream, event
from rrt_edge.runtime.server.protocol import read_chat, read_completion
from rrt_edge.runtime.server.said import ReplyReader, calls_of
from rrt_edge.runtime.server.told import about, chat_logprobs, terms, text_logprobs, usage, with_depths

DONE = "data: [DONE]\n\n"


@dataclass(frozen=True)
class OpenAIAnswers:
    """Makes the objects of one request; `chat`: of /v1/chat/completions, else of /v1/completions."""

    model: Model
    name: str
    ask: Ask
    chat: bool
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    media_type = "text/event-stream"

    def stream(self) -> Stream:
        return _Events(self)

    def chunk(
        self, index: int, token: Token, first: bool, finish_reason: str, reader: ReplyReader
    ) -> dict[str, Any] | None:
        """Return the chunk that a token adds to choice `index`; None where it adds nothing.

        Args:
            reader: of this choice.
        """
        said = reader.read([token], bool(finish_reason))
        in_full = self.ask.return_depths or self.ask.sampling.logprobs is not None
        if not (said.content or said.calls or token.thought or finish_reason or first or in_full):
            return None
        choice: dict[str, Any] = {"index": index, "finish_reason": _reason(finish_reason, reader), "logprobs": None}
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            if token.thought:
                delta["reasoning_content"] = token.thought
            if said.content or not (token.thought or reader.tells_calls):
                delta["content"] = said.content
            if said.calls:
                delta["tool_calls"] = [_call_delta(piece) for piece in said.calls]
            choice["delta"] = delta
        else:
            choice["text"] = token.text
        chunk = {**self._head(chunk=True), "choices": [self._with_extras(choice, [token])]}
        return {**chunk, "rrt_edge": terms(self.ask)} if first else chunk

    def usage_chunk(self, generations: Sequence[Generation]) -> dict[str, Any]:
        used = usage(self.ask.prompts, generations)
        return {**self._head(chunk=True), "choices": [], "usage": used, "rrt_edge": about(self.ask, generations)}

    def whole(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """Return the answer with all choices at once."""
        choices = []
        for index, reply in enumerate(generations):
            choice: dict[str, Any] = {"index": index, "finish_reason": reply.finish_reason, "logprobs": None}
            if self.chat:
                reader = ReplyReader(self.ask.tools)
                said = reader.read(reply.tokens, last=True)
                choice["finish_reason"] = _reason(reply.finish_reason, reader)
                message: dict[str, Any] = {"role": "assistant", "content": said.content, "refusal": None}
                if reply.thought:
                    message["reasoning_content"] = reply.thought
                if said.calls:
                    message |= {"content": said.content or None, "tool_calls": _calls(said)}
                choice["message"] = message
            else:
                choice["text"] = reply.text
            choices.append(self._with_extras(choice, reply.tokens))
        head, used = self._head(chunk=False), usage(self.ask.prompts, generations)
        return {**head, "choices": choices, "usage": used, "rrt_edge": about(self.ask, generations)}

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = f"chat.completion{'.chunk' if chunk else ''}" if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.name}

    def _with_extras(self, choice: dict[str, Any], tokens: Sequence[Token]) -> dict[str, Any]:
        if self.ask.sampling.logprobs is not None:
            choice["logprobs"] = (chat_logprobs if self.chat else text_logprobs)(self.model, tokens)
        if self.ask.return_depths:
            choice["rrt_edge"] = with_depths(self.model, tokens)
        return choice


class _Events:
    """Server-sent events: a chunk for each token that has something to tell, the usage if asked for, `[DONE]`."""

    def __init__(self, answers: OpenAIAnswers) -> None:
        self._answers = answers
        self._begun: set[int] = set()
        self._readers = [ReplyReader(answers.ask.tools) for _ in range(answers.ask.choices)]

    def begin(self) -> Iterator[str]:
        yield from ()

    def token(self, index: int, token: Token, finish_reason: str) -> Iterator[str]:
        first = index not in self._begun
        self._begun.add(index)
        chunk = self._answers.chunk(index, token, first, finish_reason, self._readers[index])
        if chunk is not None:
            yield event(chunk)

    def end(self, generations: Sequence[Generation]) -> Iterator[str]:
        if self._answers.ask.include_usage:
            yield event(self._answers.usage_chunk(generations))
        yield DONE

    def failed(self, error: ApiError) -> Iterator[str]:
        yield event(error.body)
        yield DONE


def _reason(finish_reason: str, reader: ReplyReader) -> str | None:
    """Why a choice ended, None where it has not; one that the model ended with calls waits for what they return."""
    return "tool_calls" if finish_reason == "stop" and reader.called else finish_reason or None


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    function = {"arguments": piece.arguments}
    if piece.name is None:
        return {"index": piece.index, "function": function}
    return {
        "index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, **function}
    }  # fmt: skip


def _calls(said: Said) -> list[dict[str, Any]]:
    return [
        {"id": call["id"], "type": "function", "function": {"name": call["name"], "arguments": call["arguments"]}}
        for call in calls_of(said)
    ]


CHAT = Door(read_chat, partial(OpenAIAnswers, chat=True))
COMPLETION = Door(read_completion, partial(OpenAIAnswers, chat=False))
