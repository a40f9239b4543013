"""What clients of OpenAI's API send, as what the engine takes; every complaint names the field."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rrt_edge.runtime.decoding.exit_policy import ExitPolicy
from rrt_edge.runtime.decoding.grammar import Grammar
from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.model import Model
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.server.conversations import read_prompt
from rrt_edge.runtime.system.json_text import parse_json
from rrt_edge.runtime.system.options import options_in, plain_number, shown

MOST_CHOICES = 16  # n, or the prompts of one completion
MOST_STOPS = 16
COMPLETION_TOKENS = 16  # of a completion whose request names no number, as OpenAI's API has it
TOKEN_ID = re.compile("0|[1-9][0-9]{0,9}")  # one spelling for each
NOT_HERE = ("functions", "audio", "prediction", "suffix", "best_of", "echo")
OTHERWISE_READ = {"max_tokens", "stop", "stop_ids", "logit_bias", "logprobs"}  # fields of another name or form
PLAIN = [name for name in options_in(Sampling) if name not in OTHERWISE_READ]  # as Sampling has them


@dataclass(frozen=True)
class Ask:
    """One request: prompts as token ids, how to reply to each, and what of the reply is to be told."""

    prompts: tuple[list[int], ...]
    sampling: Sampling
    policy: ExitPolicy
    stream: bool
    include_usage: bool
    return_depths: bool


def read_json(content: bytes) -> Any:
    """The JSON of a body.

    Raises:
        ApiError: it is not JSON, nested too deep, or holds what no text or number is.
    """
    try:
        return parse_json(content)
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON ({error})") from error


def read_chat(body: Any, model: Model, exit_policy: str | None, most_tokens: int) -> Ask:
    """The body of /v1/chat/completions.

    Raises:
        ApiError: a field is missing or wrong.
        BadInputError: an option of our own is out of range.
    """
    fields = _checked(body)
    prompt = read_prompt(fields, model)
    logprobs = None
    if _flag(fields, "logprobs"):
        logprobs = _whole(fields, "top_logprobs", 0, Sampling.MOST_LOGPROBS) or 0
    elif fields.get("top_logprobs") is not None:
        raise ApiError(400, "top_logprobs: needs logprobs to be true", "top_logprobs")
    most = fields.get("max_completion_tokens", fields.get("max_tokens"))
    return _ask(fields, model, (prompt,), most, most_tokens, logprobs, exit_policy, most_tokens)


def read_completion(body: Any, model: Model, exit_policy: str | None, most_tokens: int) -> Ask:
    """The body of /v1/completions; errors as `read_chat`."""
    fields = _checked(body)
    prompts = tuple(_ids(prompt, model) for prompt in _prompts(fields.get("prompt")))
    logprobs = _whole(fields, "logprobs", 0, Sampling.MOST_LOGPROBS)
    otherwise = most_tokens if "max_tokens" in fields else COMPLETION_TOKENS
    return _ask(fields, model, prompts, fields.get("max_tokens"), otherwise, logprobs, exit_policy, most_tokens)


def _ask(
    fields: dict[str, Any],
    model: Model,
    prompts: tuple[list[int], ...],
    most: Any,
    otherwise: int,
    logprobs: int | None,
    exit_policy: str | None,
    most_tokens: int,
) -> Ask:
    """
    Args:
        most: tokens of a reply at most, where the request says it; `otherwise`: where the bundle does not either.
        most_tokens: the server's own limit.
    """
    values = {name: fields[name] for name in PLAIN if fields.get(name) is not None}
    if plain_number(values.get("n", 1), int) not in range(1, MOST_CHOICES + 1):
        raise ApiError(400, f"n {shown(values['n'])}: must be a whole number from 1 to {MOST_CHOICES}", "n")
    if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
        raise ApiError(400, f"max_tokens {shown(most)}: must be a whole number, 1 or more", "max_tokens")
    if most is not None:
        values["max_tokens"] = min(most, most_tokens)
    if fields.get("stop") is not None:
        values["stop"] = _stops(fields["stop"])
    sampling = model.sampling(
        Sampling(max_tokens=min(otherwise, most_tokens)),
        most_tokens=most_tokens,
        **values,
        stop_ids=_stop_ids(fields.get("stop_token_ids")),
        logit_bias=_bias(fields.get("logit_bias")),
        logprobs=logprobs,
        grammar=_grammar(fields),
    )
    policy = model.policy(_text(fields, "exit_policy") or exit_policy)
    options = {} if fields.get("stream_options") is None else fields["stream_options"]
    if not isinstance(options, dict):
        raise ApiError(400, "stream_options: must be an object", "stream_options")
    return Ask(
        prompts,
        sampling,
        policy,
        stream=_flag(fields, "stream"),
        include_usage=_flag(options, "include_usage"),
        return_depths=_flag(fields, "return_depths"),
    )


def _checked(body: Any) -> dict[str, Any]:
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    for name in NOT_HERE:
        if body.get(name):
            raise ApiError(400, f"{name}: not supported by this server", name)
    return body


def _prompts(prompt: Any) -> Sequence[str | list[int]]:
    def is_ids(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)

    if isinstance(prompt, str) or (prompt and is_ids(prompt)):
        return [prompt]
    if isinstance(prompt, list) and prompt and all(isinstance(item, str) or is_ids(item) for item in prompt):
        if len(prompt) > MOST_CHOICES:
            raise ApiError(400, f"prompt: {len(prompt)} prompts; {MOST_CHOICES} at most", "prompt")
        return prompt
    raise ApiError(400, "prompt: must be a text, a list of token ids, or a list of such", "prompt")


def _ids(prompt: str | list[int], model: Model) -> list[int]:
    if isinstance(prompt, str):
        model.check_length(prompt)
        return model.encode(prompt)
    return prompt


def _stops(stop: Any) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop
    if (
        not isinstance(stops, list)
        or len(stops) > MOST_STOPS
        or not all(isinstance(text, str) and text for text in stops)
    ):
        raise ApiError(400, f"stop: must be a text that is not empty, or a list of up to {MOST_STOPS}", "stop")
    return tuple(stops)


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


def _grammar(fields: dict[str, Any]) -> Grammar | None:
    """Read what the reply must be: response_format, or `regex` and `grammar`, which are our own."""
    response_format = fields.get("response_format")
    grammars = [Grammar.regex(fields["regex"])] if _text(fields, "regex") is not None else []
    grammars += [Grammar.lark(fields["grammar"])] if _text(fields, "grammar") is not None else []
    if response_format is not None:
        kind = response_format.get("type") if isinstance(response_format, dict) else None
        if kind == "json_object":
            grammars.append(Grammar.json_schema({"type": "object"}))
        elif kind == "json_schema":
            schema = response_format.get("json_schema")
            if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
                where = "response_format.json_schema.schema"
                raise ApiError(400, f"{where}: must be a JSON schema", where)
            grammars.append(Grammar.json_schema(schema["schema"]))
        elif kind != "text":
            raise ApiError(400, "response_format.type: must be text, json_object or json_schema", "response_format")
    if len(grammars) > 1:
        raise ApiError(400, "response_format, regex and grammar: give one of them", "response_format")
    return grammars[0] if grammars else None


def _flag(fields: Mapping[str, Any], name: str) -> bool:
    value = fields.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} {shown(value)}: must be true or false", name)
    return bool(value)


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise ApiError(400, f"{name}: must be a text", name)
    return value


def _whole(fields: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
        raise ApiError(400, f"{name} {shown(value)}: must be a whole number from {least} to {most}", name)
    return value
