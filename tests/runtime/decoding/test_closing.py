"""JSON is whole however few tokens there may be, whatever the model would have said."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("llguidance")

from rrt_edge.runtime.decoding.closing import Place
from rrt_edge.runtime.decoding.constraint import Constraint, Grammars
from rrt_edge.runtime.decoding.grammar import Grammar
from tests.runtime.decoding.test_token_bytes import TOKENIZERS

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 2}, "age": {"type": "integer"}, "tall": {"type": "boolean"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SCHEMAS: dict[str, Any] = {
    "any object": {"type": "object"},
    "a person": PERSON,
    "people": {"type": "array", "items": PERSON, "minItems": 1},
    "a tree": {"type": "object", "properties": {"next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "text": {
        "type": "string"}}, "required": ["next"], "additionalProperties": False},
    "a word": {"enum": ["left", "right", "straight on"]},
    "a text": {"type": "string"},
}  # fmt: skip


def reply(constraint: Constraint, limit: int, ends: list[int], seed: int) -> list[int]:
    """The tokens of a model that says anything that it may, and goes on as long as it may."""
    random, tokens = np.random.default_rng(seed), list[int]()
    while len(tokens) < limit and not set(tokens) & set(ends):
        allowed = np.flatnonzero(constraint.allowed(tokens, limit - len(tokens)))
        goes_on = [token for token in allowed if token not in ends]
        tokens.append(int(random.choice(goes_on or allowed)))
    return tokens


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", SCHEMAS)
@settings(deadline=None)
@given(more=st.integers(0, 60), seed=st.integers(0, 1 << 32))
def test_json_is_whole_within_any_number_of_tokens(kind: str, name: str, more: int, seed: int) -> None:
    tokenizer = TOKENIZERS[kind]
    ends = [tokenizer.token_to_id("</s>")]
    grammars = Grammars(tokenizer, tokenizer.get_vocab_size(), ends)
    constraint = grammars.constraint(Grammar.json_schema(SCHEMAS[name]))
    limit = constraint.least() + more
    tokens = reply(constraint, limit, ends, seed)
    value = json.loads(tokenizer.decode(tokens))
    if name in ("a person", "people"):
        for person in [value] if name == "a person" else value:
            assert len(person["name"]) >= 2 and isinstance(person["age"], int)
    assert len(tokens) <= limit


def test_a_reply_that_ends_by_itself_is_not_cut() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ends = [tokenizer.token_to_id("</s>")]
    constraint = Grammars(tokenizer, tokenizer.get_vocab_size(), ends).constraint(Grammar.json_schema(PERSON))
    said = tokenizer.encode('{"name": "Ann", "age": 9}', add_special_tokens=False).ids
    for length, token in enumerate([*said, *ends]):
        assert constraint.allowed(said[:length], 200 - length)[token]
    assert not constraint.cut


def test_what_cannot_be_whole_soon_is_not_cut() -> None:
    """No end is found for it within the tokens that are looked through."""
    tokenizer = TOKENIZERS["byte level"]
    ends = [tokenizer.token_to_id("</s>")]
    grammars = Grammars(tokenizer, tokenizer.get_vocab_size(), ends)
    constraint = grammars.constraint(Grammar.json_schema({"type": "string", "minLength": 5000}))
    assert constraint.least() == 0
    assert len(reply(constraint, 20, ends, 1)) == 20 and not constraint.cut


def test_where_a_reply_stands_is_known_behind_drafts_that_did_not() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ends = [tokenizer.token_to_id("</s>")]
    constraint = Grammars(tokenizer, tokenizer.get_vocab_size(), ends).constraint(Grammar.json_schema(PERSON))
    said = tokenizer.encode('{"name": "An\\\\\\"n", "age": 9}', add_special_tokens=False).ids
    for length in range(len(said)):
        for draft in ([], said[length : length + 3], said[:2]):
            constraint.allowed([*said[:length], *draft], 200)
        constraint.allowed(said[:length], 200)
        text = tokenizer.decode(said[:length])
        backslashes = len(text) - len(text.rstrip("\\"))
        inside = text.replace("\\\\", "").replace('\\"', "").count('"') % 2 == 1
        expected = Place.OUTSIDE if not inside else Place.ESCAPED if backslashes % 2 else Place.INSIDE
        assert constraint._places[-1] is expected and len(constraint._places) == length + 1, text
