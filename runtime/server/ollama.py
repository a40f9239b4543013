"""The doors of Ollama's API, which many desktop programs look for: chats, questions, and what is told of the bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any

from rrt_edge.runtime.bundle.manifest import Manifest
from rrt_edge.runtime.decoding.reply import Generation, Token
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.decoding.tool_calls import Said
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.door import Ask, Door, Stream
from rrt_edge.runtime.server.ollama_requests import is_for_loading, read_ollama_chat, read_ollama_generate
from rrt_edge.runtime.server.said import ReplyReader, calls_of
from rrt_edge.runtime.server.shelf import TAG, Listed
from rrt_edge.runtime.server.told import about, token_logprobs, with_depths

VERSION = "0.12.0"  # of Ollama's API, whose clients ask for it before they use what came with a version
NANOSECONDS = 1_000_000_000
PARAMETERS = ("temperature", "top_k", "top_p", "min_p")  # of a bundle's own sampling


@dataclass(frozen=True)
class OllamaAnswers:
    """Makes the objects of one request; `chat`: of /api/chat, else of /api/generate."""

    model: Model
    name: str
    ask: Ask
    chat: bool
    started: float = field(default_factory=time.perf_counter)
    media_type = "application/x-ndjson"

    def stream(self) -> Stream:
        return _Lines(self)

    def whole(self, generations: Sequence[Generation]) -> dict[str, Any]:
        (reply,) = generations
        said = ReplyReader(self.ask.tools).read(reply.tokens, last=True)
        return self._line(said, reply.thought, reply.tokens) | self.end(reply)

    def piece(self, said: Said, thought: str, tokens: Sequence[Token]) -> dict[str, Any]:
        """What tokens add to a stream."""
        return {**self._line(said, thought, tokens), "done": False}

    def end(self, reply: Generation) -> dict[str, Any]:
        """What is told at the end of a reply."""
        stats, total = reply.stats, time.perf_counter() - self.started
        first = min(stats.time_to_first_token_s, total)
        return {
            "done": True,
            "done_reason": "length" if reply.finish_reason == "length" else "stop",
            "total_duration": int(total * NANOSECONDS),
            "load_duration": 0,
            "prompt_eval_count": stats.prompt_tokens,
            "prompt_eval_duration": int(first * NANOSECONDS),
            "eval_count": stats.generated_tokens,
            "eval_duration": int((total - first) * NANOSECONDS),
            "rrt_edge": about(self.ask, [reply]),
        }

    def _line(self, said: Said, thought: str, tokens: Sequence[Token]) -> dict[str, Any]:
        line = head(self.name)
        if self.chat:
            line["message"] = {"role": "assistant", "content": said.content}
            line["message"] |= {"thinking": thought} if thought else {}
            if said.calls:
                line["message"]["tool_calls"] = [_call(call) for call in calls_of(said)]
        else:
            line |= {"response": said.content, **({"thinking": thought} if thought else {})}
        if self.ask.sampling.logprobs is not None:
            line["logprobs"] = token_logprobs(self.model, [token for token in tokens if token.thought is None])
        if self.ask.return_depths:
            line["rrt_edge"] = with_depths(self.model, tokens)
        return line


class _Lines:
    """A line of JSON for each token that has something to tell, and one at the end; calls come whole, behind it."""

    def __init__(self, answers: OllamaAnswers) -> None:
        self._answers, self._reader, self._calls = answers, ReplyReader(answers.ask.tools), Said()

    def begin(self) -> Iterator[str]:
        yield from ()

    def token(self, index: int, token: Token, finish_reason: str) -> Iterator[str]:
        ask, said = self._answers.ask, self._reader.read([token], bool(finish_reason))
        self._calls.calls += said.calls
        now = Said(said.content, self._calls.calls if finish_reason else [])
        in_full = ask.return_depths or ask.sampling.logprobs is not None
        if now.content or now.calls or token.thought or in_full:
            yield _line(self._answers.piece(now, token.thought or "", [token]))

    def end(self, generations: Sequence[Generation]) -> Iterator[str]:
        (reply,) = generations
        yield _line(self._answers.piece(Said(), "", []) | self._answers.end(reply))

    def failed(self, error: ApiError) -> Iterator[str]:
        yield _line(told(error))


def told(error: ApiError) -> dict[str, Any]:
    """An error in the form of this API."""
    return {"error": error.body["error"]["message"]}


def head(name: str) -> dict[str, Any]:
    return {"model": name, "created_at": _time(time.time())}


def tag(listed: Listed) -> dict[str, Any]:
    """What /api/tags tells of a bundle."""
    manifest, name = listed.manifest, listed.name
    name = name if ":" in name else f"{name}{TAG}"
    return {
        "name": name,
        "model": name,
        "modified_at": _time(listed.created),
        "size": manifest.total_bytes,
        "digest": manifest.fingerprint,
        "details": _details(manifest),
    }


def running(listed: Listed) -> dict[str, Any]:
    """What /api/ps tells of a bundle that is loaded."""
    return {**tag(listed), "size_vram": 0, "context_length": listed.manifest.architecture.context_length}


def show(listed: Listed) -> dict[str, Any]:
    """What /api/show tells of a bundle."""
    shape, template = listed.manifest.architecture, listed.template
    given: dict[str, Any] = {}
    if listed.served is not None:
        sampling = listed.served.model.sampling(Sampling())
        given = {name: getattr(sampling, name) for name in PARAMETERS if getattr(sampling, name) is not None}
    capabilities = ["completion", *(["tools"] if template is not None and template.takes_tools else [])]
    return {
        "modelfile": "",
        "parameters": "\n".join(f"{name} {value}" for name, value in given.items()),
        "template": "" if template is None else template.source,
        "details": _details(listed.manifest),
        "model_info": {
            "general.architecture": shape.family,
            f"{shape.family}.context_length": shape.context_length,
            f"{shape.family}.vocab_size": shape.vocabulary,
            "rrt_edge.loops": shape.loops,
        },
        "capabilities": capabilities,
        "modified_at": _time(listed.created),
    }


def _details(manifest: Manifest) -> dict[str, Any]:
    family, bits = manifest.architecture.family, manifest.quantization.bits
    level = "F32" if bits == 32 else f"Q{bits}_0"
    return {"parent_model": "", "format": "onnx", "family": family, "families": [family], "quantization_level": level}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _call(call: dict[str, Any]) -> dict[str, Any]:
    """A call as this API has it: with its arguments as an object, the text of what is none under `text`."""
    try:
        arguments = json.loads(call["arguments"])
    except ValueError:
        arguments = None
    arguments = arguments if isinstance(arguments, dict) else {"text": call["arguments"]}
    return {"id": call["id"], "function": {"name": call["name"], "arguments": arguments}}


def _loaded(body: Any, name: str, what: str) -> dict[str, Any] | None:
    """The answer to a request that only asks that the model be loaded, or unloaded."""
    if not is_for_loading(body, what):
        return None
    said = {"message": {"role": "assistant", "content": ""}} if what == "messages" else {"response": ""}
    return {**head(name), **said, "done": True, "done_reason": "unload" if body.get("keep_alive") == 0 else "load"}


def _unloads(body: Any, what: str) -> bool:
    return is_for_loading(body, what) and body.get("keep_alive") == 0


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


OLLAMA_CHAT = Door(
    read_ollama_chat,
    partial(OllamaAnswers, chat=True),
    partial(_loaded, what="messages"),
    partial(_unloads, what="messages"),
)
OLLAMA_GENERATE = Door(
    read_ollama_generate,
    partial(OllamaAnswers, chat=False),
    partial(_loaded, what="prompt"),
    partial(_unloads, what="prompt"),
)
