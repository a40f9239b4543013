"""Replies as OpenAI's API tells them, whole or in chunks, and what of ours stands beside it under `rrt_edge`."""

from __future__ import annotations

import time
import uuid
from codecs import getincrementaldecoder
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.decoding.token_bytes import in_text
from rrt_edge.runtime.decoding.tool_calls import CallPiece, CallReader, Said
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.door import Ask, Door, Stream, event
from rrt_edge.runtime.server.protocol import read_chat, read_completion

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
        self, index: int, token: Token, first: bool, finish_reason: str, reader: CallReader | None = None
    ) -> dict[str, Any] | None:
        """Return the chunk that a token adds to choice `index`; None where it adds nothing.

        Args:
            reader: tells calls from words in this choice.
        """
        said = Said(token.text) if reader is None else _read(reader, self._words([token]), bool(finish_reason))
        finish_reason = _reason(finish_reason, reader)
        in_full = self.ask.return_depths or self.ask.sampling.logprobs is not None
        if not (said.content or said.calls or token.thought or finish_reason or first or in_full):
            return None
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason or None, "logprobs": None}
        if self.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            if token.thought:
                delta["reasoning_content"] = token.thought
            if said.content or not (token.thought or reader):
                delta["content"] = said.content
            if said.calls:
                delta["tool_calls"] = [_call_delta(piece) for piece in said.calls]
            choice["delta"] = delta
        else:
            choice["text"] = token.text
        chunk = {**self._head(chunk=True), "choices": [self._with_extras(choice, [token])]}
        return {**chunk, "rrt_edge": self._terms()} if first else chunk

    def reader(self) -> CallReader | None:
        """What tells calls from words in one choice, where there may be calls."""
        return None if self.ask.tools is None else self.ask.tools.reader()

    def _words(self, tokens: Sequence[Token]) -> str:
        """The text of tokens in which calls are told from words."""
        tools = self.ask.tools
        return "".join(token.text if tools is None else tools.words(token) for token in tokens)

    def usage_chunk(self, generations: Sequence[Generation]) -> dict[str, Any]:
        used = usage(self.ask.prompts, generations)
        return {**self._head(chunk=True), "choices": [], "usage": used, "rrt_edge": self._about(generations)}

    def whole(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """Return the answer with all choices at once."""
        choices = []
        for index, reply in enumerate(generations):
            choice: dict[str, Any] = {"index": index, "finish_reason": reply.finish_reason, "logprobs": None}
            if self.chat:
                reader = self.reader()
                said = Said(reply.text) if reader is None else _read(reader, self._words(reply.tokens), last=True)
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
        return {**head, "choices": choices, "usage": used, "rrt_edge": self._about(generations)}

    def _terms(self) -> dict[str, Any]:
        """What the request did not say, or said in vain."""
        terms: dict[str, Any] = {"max_tokens": self.ask.sampling.max_tokens}
        return {**terms, "ignored": list(self.ask.ignored)} if self.ask.ignored else terms

    def _about(self, generations: Sequence[Generation]) -> dict[str, Any]:
        return {**self._terms(), **statistics(generations)}

    def _head(self, chunk: bool) -> dict[str, Any]:
        kind = f"chat.completion{'.chunk' if chunk else ''}" if self.chat else "text_completion"
        prefix = "chatcmpl" if self.chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.name}

    def _with_extras(self, choice: dict[str, Any], tokens: Sequence[Token]) -> dict[str, Any]:
        if self.ask.sampling.logprobs is not None:
            choice["logprobs"] = self._chat_logprobs(tokens) if self.chat else self._text_logprobs(tokens)
        if self.ask.return_depths:
            choice["rrt_edge"] = {"tokens": [self._with_depth(token) for token in tokens]}
        return choice

    def _chat_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        def entry(id: int, logprob: float | None) -> dict[str, Any]:
            content = insides(self.model).token_bytes(id)
            return {"token": in_text(content), "logprob": logprob, "bytes": list(content)}

        def entries(tokens: Sequence[Token]) -> list[dict[str, Any]]:
            return [
                {**entry(token.id, token.logprob), "top_logprobs": [entry(*other) for other in token.top_logprobs]}
                for token in tokens
            ]

        thought = [token for token in tokens if token.thought is not None]
        logprobs = {"content": entries([token for token in tokens if token.thought is None]), "refusal": None}
        return {**logprobs, "reasoning_content": entries(thought)} if thought else logprobs

    def _text_logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        decoder, offset, offsets = getincrementaldecoder("utf-8")("replace"), 0, []
        for token in tokens:
            offsets.append(offset)
            offset += len(decoder.decode(insides(self.model).token_bytes(token.id)))
        return {
            "tokens": [self._text(token.id) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{self._text(other): value for other, value in token.top_logprobs} for token in tokens],
            "text_offset": offsets,
        }

    def _with_depth(self, token: Token) -> dict[str, Any]:
        payload = {"id": token.id, "text": token.text, "depth": token.depth, "gate": token.gate}
        payload["gates"] = list(token.gates)
        if token.first_loop is not None:
            payload["first_loop"] = {"id": token.first_loop, "text": self._text(token.first_loop)}
        return payload if token.thought is None else {**payload, "thought": token.thought}

    def _text(self, token: int) -> str:
        """A token as completions tell it: in words of its own where it is a part of a character."""
        content = insides(self.model).token_bytes(token)
        text = in_text(content)
        return text if text.encode() == content else f"bytes:{text}"


class _Events:
    """Server-sent events: a chunk for each token that has something to tell, the usage if asked for, `[DONE]`."""

    def __init__(self, answers: OpenAIAnswers) -> None:
        self._answers = answers
        self._begun: set[int] = set()
        self._readers = [answers.reader() for _ in range(answers.ask.choices)]

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


def _read(reader: CallReader, text: str, last: bool) -> Said:
    said = reader.push(text)
    if last:
        rest = reader.end()
        said = Said(said.content + rest.content, [*said.calls, *rest.calls])
    return said


def _reason(finish_reason: str, reader: CallReader | None) -> str:
    """Why a choice ended; a reply that the model ended with calls waits for what they return."""
    return "tool_calls" if finish_reason == "stop" and reader is not None and reader.count else finish_reason


def _call_delta(piece: CallPiece) -> dict[str, Any]:
    function = {"arguments": piece.arguments}
    if piece.name is None:
        return {"index": piece.index, "function": function}
    return {
        "index": piece.index, "id": piece.id, "type": "function", "function": {"name": piece.name, **function}
    }  # fmt: skip


def _calls(said: Said) -> list[dict[str, Any]]:
    """The calls of a whole reply."""
    calls: dict[int, dict[str, Any]] = {}
    for piece in said.calls:
        if piece.name is not None:
            function = {"name": piece.name, "arguments": ""}
            calls[piece.index] = {"id": piece.id, "type": "function", "function": function}
        calls[piece.index]["function"]["arguments"] += piece.arguments
    return list(calls.values())


def usage(prompts: Sequence[Sequence[int]], generations: Sequence[Generation]) -> dict[str, Any]:
    """Tokens of the prompts, counted once each, and of the replies, with those of their thoughts."""
    prompt_tokens = sum(map(len, prompts))
    said = sum(len(reply.tokens) for reply in generations)
    thought = sum(token.thought is not None for reply in generations for token in reply.tokens)
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": said, "total_tokens": prompt_tokens + said}
    return {**counts, "completion_tokens_details": {"reasoning_tokens": thought}}


def statistics(generations: Sequence[Generation]) -> dict[str, Any]:
    """Return the cost of the replies together."""
    tokens = sum(reply.stats.generated_tokens for reply in generations)
    depths = sum(reply.stats.mean_depth * reply.stats.generated_tokens for reply in generations)
    rows = sum(reply.stats.block_rows_per_token * reply.stats.generated_tokens for reply in generations)
    steps = sum(reply.stats.steps_per_token * reply.stats.generated_tokens for reply in generations)
    speeds = [reply.stats.decode_tokens_per_second for reply in generations]
    return {
        "mean_depth": round(depths / tokens, 4),
        "block_rows_per_token": round(rows / tokens, 4),
        "steps_per_token": round(steps / tokens, 4),
        "drafted": sum(reply.stats.drafted for reply in generations),
        "accepted": sum(reply.stats.accepted for reply in generations),
        "text_drafted": sum(reply.stats.text_drafted for reply in generations),
        "text_accepted": sum(reply.stats.text_accepted for reply in generations),
        "tokens_per_second": round(sum(speeds) / len(speeds), 2),
        "device": generations[0].stats.device,
        "kv_rule": generations[0].stats.kv_rule,
        "time_to_first_token_s": max(reply.stats.time_to_first_token_s for reply in generations),
    }


CHAT = Door(read_chat, partial(OpenAIAnswers, chat=True))
COMPLETION = Door(read_completion, partial(OpenAIAnswers, chat=False))
