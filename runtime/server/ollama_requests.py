"""What clients of Ollama's API send, as what the engine takes; every complaint names their field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError, chained, named
from rrt_edge.runtime.server.door import Ask
from rrt_edge.runtime.server.fields import BOTH, Fields
from rrt_edge.runtime.server.protocol import read_chat, read_completion
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.system.options import shown

OURS = BOTH - {"model", "stream", "stream_options", "logprobs", "n"}  # fields that may stand among the options
RENAMED = {"num_predict": "max_tokens", "repeat_penalty": "repetition_penalty"}  # options: as OpenAI's clients say it
SHARED = frozenset(
    {"model", "stream", "format", "options", "keep_alive", "think", "logprobs", "top_logprobs", "truncate"}
)
CHAT_FIELDS = SHARED | {"messages", "tools"}
GENERATE_FIELDS = SHARED | {"prompt", "system", "raw"}
MACHINE = frozenset(  # options that say how a model is loaded, or how another engine samples
    {
        "numa", "num_ctx", "num_batch", "num_gpu", "main_gpu", "low_vram", "f16_kv", "logits_all", "vocab_only",
        "use_mmap", "use_mlock", "embedding_only", "num_thread", "num_keep", "tfs_z", "repeat_last_n", "mirostat",
        "mirostat_tau", "mirostat_eta", "penalize_newline",
    }
)  # fmt: skip
NOTHING: dict[str, tuple[tuple[Any, ...], str]] = {  # fields that are not supported, but for these values
    "images": (([],), "this server reads text alone"),
    "suffix": (("",), "this server completes at the end alone"),
    "template": (("",), "the bundle's chat template is used; send raw: true with a prompt in a form of your own"),
    "context": (([],), "send the conversation as messages to /api/chat"),
}


def read_ollama_chat(body: Any, model: Model, options: ServerOptions) -> Ask:
    """The body of /api/chat.

    Raises:
        ApiError: a field is missing or wrong.
        BadInputError: an option is out of range.
    """
    fields = Fields.of(body, CHAT_FIELDS, NOTHING, frozenset())
    names = _names(fields)
    with named(names):
        asked = {**_asked(fields, options), "messages": _messages(fields.get("messages")), "tools": fields.get("tools")}
        return _told(read_chat(_thinking(fields, asked), model, options), fields, names)


def read_ollama_generate(body: Any, model: Model, options: ServerOptions) -> Ask:
    """The body of /api/generate: a question, or with `raw`, and where the bundle has no chat template, a text that is
    continued; errors as `read_ollama_chat`."""
    fields = Fields.of(body, GENERATE_FIELDS, NOTHING, frozenset())
    names = {**_names(fields), "messages": "prompt"}
    with named(names):
        prompt, asked = fields.text("prompt") or "", _asked(fields, options)
        system = fields.text("system")
        if fields.flag("raw") or model.template is None:
            if fields.flag("raw") and system:
                raise ApiError(400, "system: does not go with raw; put it into the prompt", "system")
            wanted = asked.pop("top_logprobs", None)
            asked["logprobs"] = (wanted or 0) if asked.pop("logprobs", False) else None
            asked.setdefault("max_tokens", options.default_tokens)
            return _told(read_completion({**asked, "prompt": (system or "") + prompt}, model, options), fields, names)
        messages = [{"role": "system", "content": system}] if system else []
        asked["messages"] = [*messages, {"role": "user", "content": prompt}]
        return _told(read_chat(_thinking(fields, asked), model, options), fields, names)


def is_for_loading(body: Any, what: str) -> bool:
    """Whether a request without messages, or a prompt, only asks that the model be loaded or unloaded."""
    return isinstance(body, dict) and not body.get(what) and not body.get("images")


def _told(ask: Ask, fields: Fields, names: dict[str, str]) -> Ask:
    options = fields.get("options") or {}
    passed = [f"options.{name}" for name, value in options.items() if name in MACHINE and value is not None]
    return replace(ask, ignored=(*fields.ignored, *passed), names=chained(ask.names, names))


def _names(fields: Fields) -> dict[str, str]:
    """How a request says what others call otherwise."""
    names = {"max_tokens": "options.num_predict", "repetition_penalty": "options.repeat_penalty"}
    names |= {"response_format": "format", "chat_template_kwargs": "think"}
    options = fields.get("options")
    own = options if isinstance(options, dict) else {}
    return names | {name: f"options.{name}" for name in own if name not in RENAMED}


def _asked(fields: Fields, options: ServerOptions) -> dict[str, Any]:
    """What both endpoints share, in the words of OpenAI's chats."""
    given = fields.get("options")
    if not isinstance(given, dict | None):
        raise ApiError(400, f"options {shown(given)}: must be an object", "options")
    own = {name: value for name, value in (given or {}).items() if name not in MACHINE}
    own = dict(Fields.of(own, frozenset(OURS | set(RENAMED)), {}, frozenset()).values)
    asked = {RENAMED.get(name, name): value for name, value in own.items()}
    most = asked.get("max_tokens")
    if isinstance(most, int) and not isinstance(most, bool) and most < 0:  # as many as there is room for
        asked["max_tokens"] = options.most_tokens
    stream = fields.get("stream")
    asked |= {"stream": True if stream is None else stream, "model": fields.get("model")}
    if "truncate" not in fields or fields.flag("truncate"):  # as in Ollama, the oldest messages make room
        asked.setdefault("context_full", "truncate-left")
    form = fields.get("format")
    if form == "json":
        asked["response_format"] = {"type": "json_object"}
    elif isinstance(form, dict):
        asked["response_format"] = {"type": "json_schema", "json_schema": {"schema": form}}
    elif form not in (None, ""):
        raise ApiError(400, f'format {shown(form)}: must be "json" or a JSON schema', "format")
    if fields.flag("logprobs"):
        asked |= {"logprobs": True, "top_logprobs": fields.get("top_logprobs")}
    return asked


def _thinking(fields: Fields, asked: dict[str, Any]) -> dict[str, Any]:
    think = fields.get("think")
    if think is None:
        return asked
    if not isinstance(think, bool | str):
        raise ApiError(400, f"think {shown(think)}: must be true, false or a level", "think")
    return {**asked, "chat_template_kwargs": {"enable_thinking": bool(think)}}


def _messages(messages: Any) -> Any:
    """Messages as OpenAI's API has them: calls and what they returned are joined by ids there."""
    if not isinstance(messages, list):
        return messages
    told: list[Any] = []
    waiting: list[tuple[str, str]] = []  # calls without an answer: their ids and functions
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            told.append(message)
            continue
        if message.get("images"):
            where = f"messages[{index}].images"
            raise ApiError(400, f"{where}: not supported by this server; this server reads text alone", where)
        message = {name: value for name, value in message.items() if name != "images"}
        calls = message.get("tool_calls")
        if isinstance(calls, list):
            message["tool_calls"] = [_call(f"call_{index}_{number}", call) for number, call in enumerate(calls)]
            waiting += [(call["id"], call["function"].get("name")) for call in message["tool_calls"] if "id" in call]
        elif message.get("role") == "tool" and "tool_call_id" not in message:
            name = message.pop("tool_name", None)
            answered = next((call for call in waiting if call[1] == name), waiting[0] if waiting else None)
            if answered is not None:
                waiting.remove(answered)
                message |= {"tool_call_id": answered[0], "name": answered[1]}
        told.append(message)
    return told


def _call(id: str, call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    text = json.dumps(arguments, ensure_ascii=False) if isinstance(arguments, dict) else arguments
    return {"id": id, "type": "function", "function": {**function, "arguments": text}}
