"""What clients of OpenAI's API send, as what the engine takes; every complaint names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rrt_edge.runtime.bundle.messages import cut
from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.decoding.tool_calls import CLOSE
from rrt_edge.runtime.errors import about
from rrt_edge.runtime.loaded import insides
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError, named
from rrt_edge.runtime.server.conversations import read_prompt
from rrt_edge.runtime.server.door import Ask
from rrt_edge.runtime.server.fields import CHAT, COMPLETION, PLAIN, Fields, flag
from rrt_edge.runtime.server.server_options import ServerOptions
from rrt_edge.runtime.server.tools import Tools, read_tools
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import plain_number, shown

MOST_CHOICES = 16  # n, or the prompts of one completion
MOST_STOPS = 16
COMPLETION_TOKENS = 16  # of a completion whose request names no number, as OpenAI's API has it
CONTEXT_FULL = ("error", "truncate-left")  # what an engine can do
TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")  # one spelling for each


def read_json(content: bytes) -> Any:
    """The JSON of a body.

    Raises:
        ApiError: it is not JSON, nested too deep, or holds what no text or number is.
    """
    try:
        return parse_json(content)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON ({error})") from error


def read_chat(body: Any, model: Model, options: ServerOptions) -> Ask:
    """The body of /v1/chat/completions.

    Raises:
        ApiError: a field is missing or wrong.
        BadInputError: an option of our own is out of range.
    """
    fields = Fields.of(body, CHAT)
    names = {"prompt": "messages", "stop_ids": "stop_token_ids"}
    with named(names):
        tools = read_tools(fields, model)
        logprobs = fields.whole("top_logprobs", 0, Sampling.MOST_LOGPROBS)
        if fields.flag("logprobs"):
            logprobs = logprobs or 0
        elif logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs to be true", "top_logprobs")
        else:
            logprobs = None
        name = "max_completion_tokens" if "max_completion_tokens" in fields else "max_tokens"
        sampling, grammar = _sampling(fields, model, name, options.default_tokens, options.most_tokens, logprobs)
        if tools is not None:
            answer, sampling = sampling.grammar, _calling(sampling, tools)
            grammar = grammar if sampling.grammar is answer else "tools"
        prompt = read_prompt(fields, model, None if tools is None else tools.shown, _room(fields, model, sampling))
        names = {**names, "grammar": grammar, "max_tokens": name}
        return _ask(fields, model, (prompt,), sampling, options.exit_policy, names, tools)


def read_completion(body: Any, model: Model, options: ServerOptions) -> Ask:
    """The body of /v1/completions; errors as `read_chat`."""
    fields = Fields.of(body, COMPLETION)
    names = {"stop_ids": "stop_token_ids"}
    with named(names):
        logprobs = fields.whole("logprobs", 0, Sampling.MOST_LOGPROBS)
        sampling, grammar = _sampling(
            fields, model, "max_tokens", COMPLETION_TOKENS, options.most_tokens, logprobs
        )  # fmt: skip
        best_of = fields.whole("best_of", 1, MOST_CHOICES)
        if best_of not in (None, sampling.n):
            raise ApiError(400, f"best_of {best_of}: must be n, {sampling.n}; no reply is left out here", "best_of")
        most = _room(fields, model, sampling)
        prompts = tuple(cut(_ids(prompt, model, most), most) for prompt in _prompts(body))
        return _ask(fields, model, prompts, sampling, options.exit_policy, {**names, "grammar": grammar})


def _calling(sampling: Sampling, tools: Tools) -> Sampling:
    """How to reply where functions may be called."""
    sampling = replace(sampling, grammar=tools.grammar(sampling.grammar))
    if tools.style == "hermes" and not tools.several:  # nothing is to follow the call
        sampling = replace(sampling, stop=(*sampling.stop, CLOSE))
    return sampling


def _sampling(
    fields: Fields, model: Model, limit: str, default_tokens: int, most_tokens: int, logprobs: int | None
) -> tuple[Sampling, str]:
    """How to reply, and the field that the grammar is of.

    Args:
        limit: the field that bounds the reply's tokens.
    """
    values = {name: fields.get(name) for name in PLAIN if name in fields}
    if plain_number(values.get("n", 1), int) not in range(1, MOST_CHOICES + 1):
        raise ApiError(400, f"n {shown(values['n'])}: must be a whole number from 1 to {MOST_CHOICES}", "n")
    most = fields.get(limit)
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ApiError(400, f"{limit} {shown(most)}: must be a whole number, 1 or more", limit)
    if most is not None:
        values["max_tokens"] = min(most, most_tokens)
    if "stop" in fields:
        values["stop"] = _stops(fields.get("stop"))
    grammar, name = _grammar(fields)
    sampling = model.sampling(
        Sampling(max_tokens=min(default_tokens, most_tokens)),
        most_tokens=most_tokens,
        **values,
        stop_ids=_stop_ids(fields.get("stop_token_ids")),
        logit_bias=_bias(fields.get("logit_bias")),
        logprobs=logprobs,
        grammar=grammar,
    )
    return sampling, name


def _ask(
    fields: Fields,
    model: Model,
    prompts: tuple[list[int], ...],
    sampling: Sampling,
    exit_policy: str | None,
    names: Mapping[str, str],
    tools: Tools | None = None,
) -> Ask:
    with about("exit_policy"):
        policy = model.policy(fields.text("exit_policy") or exit_policy)
    options = fields.get("stream_options") if "stream_options" in fields else {}
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options: must be an object", "stream_options")
    return Ask(
        prompts,
        sampling,
        policy,
        stream=fields.flag("stream"),
        include_usage=flag(options, "include_usage"),
        return_depths=fields.flag("return_depths"),
        tools=tools,
        ignored=fields.ignored,
        names=names,
    )


def _prompts(body: dict[str, Any]) -> Sequence[str | list[int]]:
    def is_ids(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)

    prompt = body.get("prompt")
    if prompt is None and "prompt" in body:
        return [""]
    if isinstance(prompt, str) or (prompt and is_ids(prompt)):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) or is_ids(item) for item in prompt):
        if len(prompt) > MOST_CHOICES:
            raise ApiError(400, f"prompt: {len(prompt)} prompts; {MOST_CHOICES} at most", "prompt")
        return prompt
    raise ApiError(400, "prompt: must be a text, a list of token ids, or a list of such", "prompt")


def _room(fields: Fields, model: Model, sampling: Sampling) -> int | None:
    """Tokens to which a longer prompt is shortened, where that is asked for."""
    context_full = fields.text("context_full") or "error"
    if context_full not in CONTEXT_FULL:
        raise ApiError(400, f"context_full {shown(context_full)}: must be {' or '.join(CONTEXT_FULL)}", "context_full")
    return insides(model).prompt_room(context_full, sampling)


def _ids(prompt: str | list[int], model: Model, most: int | None) -> list[int]:
    """The token ids of a prompt; of an empty text those that a text begins behind, as in OpenAI's API."""
    if not isinstance(prompt, str):
        return prompt
    with about("prompt"):
        if most is None:
            insides(model).check_length(prompt)
        return model.encode(prompt) or list(model.manifest.eos_token_ids[:1])


def _stops(stop: Any) -> tuple[str, ...]:
    """The texts that end a reply; an empty one ends none."""
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MOST_STOPS or not all(isinstance(text, str) for text in stops):
        raise ApiError(400, f"stop: must be a text, or a list of up to {MOST_STOPS}", "stop")
    return tuple(text for text in stops if text)


def _stop_ids(ids: Any) -> tuple[Any, ...]:
    if ids is not None and not isinstance(ids, list):
        raise ApiError(400, f"stop_token_ids {shown(ids)}: must be a list of token ids", "stop_token_ids")
    return tuple(ids or ())


def _bias(bias: Any) -> dict[int, float]:
    if bias is None:
        return {}
    if not isinstance(bias, dict) or not all(TOKEN_ID.fullmatch(token) for token in bias):
        raise ApiError(400, "logit_bias: must be an object of numbers by token id", "logit_bias")
    return {int(token): value for token, value in bias.items()}


def _grammar(fields: Fields) -> tuple[Grammar | None, str]:
    """What the reply must be, and the field that says it: response_format, or `regex` or `grammar`, which are ours."""
    response_format = fields.get("response_format")
    grammars: list[tuple[Grammar, str]] = []
    for name, make in (("regex", Grammar.regex), ("grammar", Grammar.lark)):
        text = fields.text(name)
        if text is not None:
            with about(name):
                grammars.append((make(text), name))
    if response_format is not None:
        with about("response_format"):
            grammar = _of_format(response_format)
        grammars += [] if grammar is None else [(grammar, "response_format")]
    if len(grammars) > 1:
        raise ApiError(400, "response_format, regex and grammar: give one of them", grammars[-1][1])
    return grammars[0] if grammars else (None, "")


def _of_format(response_format: Any) -> Grammar | None:
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Grammar.json_schema({"type": "object"})
    if kind != "json_schema":
        raise ApiError(400, "response_format.type: must be text, json_object or json_schema", "response_format.type")
    described = response_format.get("json_schema")
    schema = described.get("schema") if isinstance(described, dict) else described
    if not isinstance(described, dict) or not isinstance(schema, dict | None):
        where = "response_format.json_schema.schema"
        raise ApiError(400, f"{where}: must be a JSON schema", where)
    return Grammar.json_schema({"type": "object"} if schema is None else schema)
