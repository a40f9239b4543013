"""Bodies of requests by the schema of OpenAI's API, as the `openai` package has it, and with our own fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any, get_type_hints

from hypothesis import strategies as st
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_completion_create_params

from tests.fuzz.documents import Draw, Object, as_tree, change, changed, contents, encoded, odd_values, texts, to_text

MOST_PARTS = 10  # of a list or an object
OURS: dict[str, Any] = {
    "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.01, "typical_p": 0.9, "repetition_penalty": 1.1,
    "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"20": -1, "7": 3.5}, "seed": 5, "n": 2,
    "min_tokens": 1, "think_tokens": 1, "stop": ["zz", "y"], "stop_token_ids": [7], "stream": False, "user": "somebody",
    "stream_options": {"include_usage": True}, "exit_policy": "threshold=0.5", "return_depths": True, "model": "here",
}  # fmt: skip
CALL = {"name": "f", "arguments": '{"a": 1}'}
ALL = {**OURS, "documents": [{"title": "a"}], "chat_template_kwargs": {"enable_thinking": False}}
MESSAGES = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": CALL}]},
    {"role": "tool", "tool_call_id": "c", "content": "9"},
    {"role": "assistant", "content": "Yes?", "reasoning_content": "Hm"},
    {"role": "user", "content": "No"},
]
FULL = {
    "chat/completions": {"messages": MESSAGES, "max_completion_tokens": 3, "logprobs": True, "top_logprobs": 2, **ALL},
    "completions": {"prompt": [[20, 30, 40], "Once", "a"], "max_tokens": 3, "logprobs": 2, **OURS},
}
SHORT: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": MESSAGES[-1:], "max_tokens": 3},
    "completions": {"prompt": [20, 30, 40], "max_tokens": 3},
}
SCHEMAS = {
    "chat/completions": get_type_hints(chat_completion_create_params.CompletionCreateParamsBase) | {"stream": bool},
    "completions": get_type_hints(completion_create_params.CompletionCreateParamsBase) | {"stream": bool},
}
SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 1, "maximum": 9},
        "b": {"type": "array", "items": {"$ref": "#/$defs/c"}, "maxItems": 2},
    },
    "required": ["a"],
    "additionalProperties": False,
    "$defs": {
        "c": {"anyOf": [{"type": "string", "pattern": "[ab]{1,3}", "maxLength": 2}, {"const": None}, {"enum": [1]}]}
    },
}
PATTERNS = ["a|b", "(ab){2,}", "[^x]*", "(", "[b-a]", "(?i)x", r"\p{L}+", r"\d{1000}", "a{99999}", "$^", "(?=a)", "\\"]
LARK = [
    "start: A\nA: /a+/\n",
    'start: "a" b?\nb: start\n',
    "start: start\n",
    "start:",
    "%llguidance {}\nstart: /x/",
    "A: /a/",
]


def _plain(value: Any) -> Any:
    """A value of the package's types as JSON has it; where they allow any object, it may be without end."""
    if isinstance(value, Mapping):
        return Object([str(name), _plain(inner)] for name, inner in islice(value.items(), MOST_PARTS))
    if value is None or isinstance(value, str | int | float):
        return value
    return [_plain(inner) for inner in islice(value, MOST_PARTS)] if isinstance(value, Iterable) else repr(value)


@st.composite
def by_schema(draw: Draw, endpoint: str) -> Object:
    """A short request with fields as the schema has them, some of whose values are changed."""
    tree, schema = as_tree(SHORT[endpoint]), SCHEMAS[endpoint]
    for name in draw(st.lists(st.sampled_from(sorted(schema)), max_size=3, unique=True)):
        value = _plain(draw(st.from_type(schema[name])))
        tree.append([name, change(draw, value) if draw(st.booleans()) else value])
    names = [name for name, _ in tree]
    return Object(pair for at, pair in enumerate(tree) if pair[0] not in names[at + 1 :])


@st.composite
def at_bounds(draw: Draw, endpoint: str) -> Object:
    """A full request of which one value, or two, is odd."""
    tree = as_tree(FULL[endpoint])
    for pair in draw(st.lists(st.sampled_from(tree), min_size=1, max_size=2)):
        pair[1] = draw(odd_values)
    return tree


@st.composite
def with_grammar(draw: Draw, endpoint: str) -> Object:
    """A request whose reply is to follow what may be none of a grammar."""
    tree = as_tree(SHORT[endpoint])
    schema = Object(
        [["type", "json_schema"], ["json_schema", Object([["name", "x"], ["schema", draw(changed(SCHEMA))]])]]
    )
    fields = [
        ["response_format", schema],
        ["regex", draw(st.sampled_from(PATTERNS) | texts)],
        ["grammar", draw(st.sampled_from(LARK)) + draw(texts)],
    ]
    return Object([*tree, draw(st.sampled_from(fields))])


@st.composite
def bodies(draw: Draw) -> tuple[str, bytes]:
    """An endpoint and a body for it."""
    endpoint = draw(st.sampled_from(sorted(FULL)))
    trees = [by_schema(endpoint), at_bounds(endpoint), changed(FULL[endpoint]), changed(SHORT[endpoint])]
    as_text = st.one_of(*trees, *trees, with_grammar(endpoint)).map(lambda tree: encoded(to_text(tree)))
    return endpoint, draw(st.one_of(as_text, as_text, contents(FULL[endpoint])))
