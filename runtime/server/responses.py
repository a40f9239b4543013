"""Replies as OpenAI's Responses API tells them: items of output, whole or as events. Nothing is stored."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.decoding.tool_calls import CallPiece
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.door import Ask, Door, Stream, event
from rrt_edge.runtime.server.responses_requests import read_response
from rrt_edge.runtime.server.said import ReplyReader
from rrt_edge.runtime.server.told import about, terms, token_logprobs, usage, with_depths

Event = dict[str, Any]
PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc"}
PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


@dataclass(frozen=True)
class ResponseAnswers:
    """Makes the objects of one request."""

    model: Model
    name: str
    ask: Ask
    id: str = field(default_factory=lambda: f"resp_{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    media_type = "text/event-stream"

    def stream(self) -> Stream:
        return _Events(self)

    def whole(self, generations: Sequence[Generation]) -> dict[str, Any]:
        (reply,) = generations
        items = _Items(self)
        for token in reply.tokens:
            last = token is reply.tokens[-1]
            for _ in items.token(token, reply.finish_reason if last else ""):
                pass
        return self.response(items.done, reply)

    def response(
        self, output: list[dict[str, Any]], reply: Generation | None = None, error: ApiError | None = None
    ) -> dict[str, Any]:
        """The response with what it has to tell so far; `reply`, once it has ended, `error` where it failed."""
        cut = reply is not None and reply.finish_reason == "length"
        response: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "status": "failed" if error else "in_progress" if reply is None else "incomplete" if cut else "completed",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "model": self.name,
            "output": output,
            "previous_response_id": None,
            "reasoning": {"effort": None, "summary": None},
            "store": False,
            **self.ask.echo,
            "usage": None,
            "rrt_edge": terms(self.ask),
        }
        if error is not None:
            response["error"] = {"code": "server_error", "message": error.body["error"]["message"]}
        if reply is not None:
            response |= {"usage": self._usage(reply), "rrt_edge": about(self.ask, [reply])}
            if self.ask.return_depths:
                response["rrt_edge"] |= with_depths(self.model, reply.tokens)
        return response

    def _usage(self, reply: Generation) -> dict[str, Any]:
        counts = usage(self.ask.prompts, [reply])
        return {
            "input_tokens": counts["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": counts["completion_tokens"],
            "output_tokens_details": counts["completion_tokens_details"],
            "total_tokens": counts["total_tokens"],
        }

    def logprobs(self, tokens: Sequence[Token]) -> list[dict[str, Any]]:
        return [] if self.ask.sampling.logprobs is None else token_logprobs(self.model, tokens)


class _Items:
    """The items of output as tokens come: a thought, words and calls, each open until the next begins."""

    def __init__(self, answers: ResponseAnswers) -> None:
        self.done: list[dict[str, Any]] = []
        self._answers, self._reader = answers, ReplyReader(answers.ask.tools)
        self._open: dict[str, Any] | None = None

    def token(self, token: Token, finish_reason: str) -> Iterator[Event]:
        """What a token adds, as events; the last one has its reason."""
        said = self._reader.read([token], bool(finish_reason))
        if token.thought:
            yield from self._text("reasoning", token.thought, [token])
        logprobs = self._answers.ask.sampling.logprobs is not None and token.thought is None
        if said.content or (logprobs and not said.calls and not self._reader.called):
            yield from self._text("message", said.content, [token])
        for piece in said.calls:
            yield from self._arguments(piece)
        if finish_reason:
            if not self.done and self._open is None:  # a reply without a word is one all the same
                yield from self._begin("message")
            yield from self._end("incomplete" if finish_reason == "length" else "completed")

    def _text(self, kind: str, text: str, tokens: Sequence[Token]) -> Iterator[Event]:
        if self._open is None or self._open["type"] != kind:
            yield from self._end()
            yield from self._begin(kind)
        assert self._open is not None
        part = self._open["content"][0]
        part["text"] += text
        told: Event = {"type": f"response.{PARTS[kind]}.delta", **self._place(), "content_index": 0, "delta": text}
        if kind == "message":
            told["logprobs"] = self._answers.logprobs(tokens)
            part["logprobs"] += told["logprobs"]
        yield told

    def _arguments(self, piece: CallPiece) -> Iterator[Event]:
        if piece.name is not None:
            yield from self._end()
            yield from self._begin("function_call", call_id=f"call_{piece.id}", name=piece.name, arguments="")
        assert self._open is not None
        if piece.arguments:
            self._open["arguments"] += piece.arguments
            kind = "response.function_call_arguments.delta"
            yield {"type": kind, **self._place(), "delta": piece.arguments}

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.done)}

    def _begin(self, kind: str, **more: Any) -> Iterator[Event]:
        item = {"id": f"{PREFIXES[kind]}_{uuid.uuid4().hex}", "type": kind, "status": "in_progress", **more}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        self._open = item
        yield {"type": "response.output_item.added", "output_index": len(self.done), "item": _copy(item)}
        if kind in PARTS:
            part: dict[str, Any] = {"type": PARTS[kind], "text": ""}
            if kind == "message":
                part |= {"annotations": [], "logprobs": []}
            item["content"].append(part)
            told = {"content_index": 0, "part": dict(part)}
            yield {"type": "response.content_part.added", **self._place(), **told}

    def _end(self, status: str = "completed") -> Iterator[Event]:
        item = self._open
        if item is None:
            return
        place = self._place()
        if item["type"] in PARTS:
            (part,) = item["content"]
            told = {"content_index": 0, "text": part["text"]}
            told |= {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            yield {"type": f"response.{PARTS[item['type']]}.done", **place, **told}
            yield {"type": "response.content_part.done", **place, "content_index": 0, "part": dict(part)}
        else:
            told = {"name": item["name"], "arguments": item["arguments"]}
            yield {"type": "response.function_call_arguments.done", **place, **told}
        item["status"] = status
        self._open = None
        self.done.append(item)
        yield {"type": "response.output_item.done", "output_index": place["output_index"], "item": _copy(item)}


class _Events:
    """Server-sent events, numbered; each has its type as its name too."""

    def __init__(self, answers: ResponseAnswers) -> None:
        self._answers, self._items = answers, _Items(answers)
        self._number = 0

    def begin(self) -> Iterator[str]:
        for kind in ("created", "in_progress"):
            yield self._told({"type": f"response.{kind}", "response": self._answers.response([])})

    def token(self, index: int, token: Token, finish_reason: str) -> Iterator[str]:
        yield from map(self._told, self._items.token(token, finish_reason))

    def end(self, generations: Sequence[Generation]) -> Iterator[str]:
        response = self._answers.response(self._items.done, generations[0])
        yield self._told({"type": f"response.{response['status']}", "response": response})

    def failed(self, error: ApiError) -> Iterator[str]:
        response = self._answers.response(self._items.done, error=error)
        yield self._told({"type": "response.failed", "response": response})

    def _told(self, value: Event) -> str:
        self._number += 1
        return event({**value, "sequence_number": self._number - 1}, value["type"])


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """An item as it is now."""
    return {name: list(value) if isinstance(value, list) else value for name, value in item.items()}


RESPONSE = Door(read_response, ResponseAnswers)
