"""The fields of a request's body: which are read, which are told to be passed over, and values by their types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from rrt_edge.runtime.decoding.sampling import Sampling
from rrt_edge.runtime.server.api_error import ApiError
from rrt_edge.runtime.system.options import named, options_in, shown

OTHERWISE_READ = {"max_tokens", "stop", "stop_ids", "logit_bias", "logprobs"}  # fields of another name or form
PLAIN = [name for name in options_in(Sampling) if name not in OTHERWISE_READ]  # as Sampling has them
BOTH = frozenset(
    {
        *PLAIN, "model", "stream", "stream_options", "max_tokens", "stop", "stop_token_ids", "logit_bias", "logprobs",
        "response_format", "regex", "grammar", "exit_policy", "return_depths",
        "context_full",
    }
)  # fmt: skip
CHAT = BOTH | {
    "messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "parallel_tool_calls", "documents",
    "chat_template_kwargs",
}  # fmt: skip
COMPLETION = BOTH | {"prompt", "best_of"}
NOTHING = {  # fields that are not supported, with the values that ask for nothing; and what to do instead
    "audio": ((), "this server writes text alone"),
    "modalities": ((["text"], []), "this server writes text alone"),
    "functions": (([],), "send them as tools"),
    "function_call": (("none", "auto"), "send functions as tools, and tool_choice"),
    "web_search_options": ((), "this server has no search"),
    "suffix": (("",), "this server completes at the end alone"),
    "echo": ((False,), "put the prompt before the answer yourself"),
}
PASSED_OVER = frozenset(  # OpenAI's, which change nothing here
    {
        "metadata", "moderation", "prediction", "prompt_cache_key", "prompt_cache_options",
        "prompt_cache_retention", "reasoning_effort", "safety_identifier", "service_tier", "store", "user", "verbosity",
    }
)  # fmt: skip
MOST_UNKNOWN = 32
NEAR = 0.85  # of 1: how alike a misspelt name and the right one are
SHORTEST = 5  # letters of a name that may be misspelt: shorter ones are too much alike


@dataclass(frozen=True)
class Fields:
    """The fields of a body that are not null; `ignored` are those that change nothing."""

    values: Mapping[str, Any]
    ignored: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        body: Any,
        read: frozenset[str],
        nothing: Mapping[str, tuple[tuple[Any, ...], str]] = NOTHING,
        passed_over: frozenset[str] = PASSED_OVER,
    ) -> Fields:
        """
        Args:
            read: the names of the fields that the endpoint reads.
            nothing: fields that are not supported, with the values that ask for nothing, and what to do instead.
            passed_over: known fields that change nothing.

        Raises:
            ApiError: the body is no object; it asks for what is not supported, or misspells a field.
        """
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object")
        values = {name: value for name, value in body.items() if value is not None}
        ignored = [name for name in values if name not in read]
        unknown = [name for name in ignored if name not in passed_over and name not in nothing]
        if len(unknown) > MOST_UNKNOWN:
            raise ApiError(400, f"{named(unknown[0])}: one of {len(unknown)} fields that this server does not know")
        for name in unknown:
            nearest = _nearest(name, read)
            if nearest is not None:
                raise ApiError(400, f"{named(name)}: no such field; did you mean {nearest}?", name)
        for name in ignored:
            values_allowed, remedy = nothing.get(name, ((values[name],), ""))
            if values[name] not in values_allowed:
                raise ApiError(400, f"{name}: not supported by this server; {remedy}", name)
        return cls(values, tuple(name for name in ignored if name not in nothing))

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def get(self, name: str) -> Any:
        """The value of a field, or None."""
        return self.values.get(name)

    def flag(self, name: str) -> bool:
        return flag(self.values, name)

    def text(self, name: str) -> str | None:
        value = self.get(name)
        if value is not None and not isinstance(value, str):
            raise ApiError(400, f"{name}: must be a text", name)
        return value

    def whole(self, name: str, least: int, most: int) -> int | None:
        value = self.get(name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
            raise ApiError(400, f"{name} {shown(value)}: must be a whole number from {least} to {most}", name)
        return value


def flag(values: Mapping[str, Any], name: str) -> bool:
    """Whether a field, by default false, is true."""
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        raise ApiError(400, f"{name} {shown(value)}: must be true or false", name)
    return bool(value)


def _nearest(name: str, read: frozenset[str]) -> str | None:
    """The field that somebody meant who wrote another name; None where it is likely another program's."""

    def bare(text: str) -> str:
        return text.lower().replace("_", "").replace("-", "")

    known = sorted(read)
    same = [field for field in known if bare(field) == bare(name)]
    near = get_close_matches(name, known, 1, NEAR) if len(name) >= SHORTEST else []
    return next(iter([*same, *near]), None)
