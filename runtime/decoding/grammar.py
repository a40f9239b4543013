"""`Grammar`: what a structured reply must be, a JSON schema, a regular expression or a Lark grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from rrt_edge.runtime.errors import BadInputError
from rrt_edge.runtime.system.json_text import parse_json

Kind = Literal["json-schema", "regex", "lark"]
LONGEST = 100_000  # characters: far above any schema that a reply could follow


@dataclass(frozen=True)
class Grammar:
    """What a reply must be. Made by `json_schema`, `regex` or `lark`; a model checks it when it is first used."""

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or not isinstance(self.text, str):
            raise BadInputError(f"grammar: must be a text of one of {', '.join(get_args(Kind))}")
        if len(self.text) > LONGEST:
            raise BadInputError(f"{self.kind}: {len(self.text):,} characters; {LONGEST:,} are the most that is taken")

    @property
    def is_json(self) -> bool:
        """Whether it is JSON that a reply must be, which is of no use in part."""
        return self.kind == "json-schema" or "%json" in self.text

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> Grammar:
        """A JSON document that a schema (draft 2020-12) allows, on one line; `{}` allows any.

        Raises:
            BadInputError: the text is not JSON, or no schema.
        """
        if isinstance(schema, str):
            try:
                schema = parse_json(schema)
            except ValueError as error:
                raise BadInputError(f"json-schema: not valid JSON ({error})") from error
        if not isinstance(schema, Mapping | bool):
            name = schema.__name__ if hasattr(schema, "model_json_schema") and isinstance(schema, type) else ""
            remedy = f"; of a pydantic class give Grammar.json_schema({name}.model_json_schema())" if name else ""
            raise BadInputError(f"json-schema: must be a JSON object{remedy}")
        try:
            return cls("json-schema", json.dumps(schema))
        except (TypeError, ValueError, RecursionError) as error:
            raise BadInputError(f"json-schema: not valid JSON ({error})") from error

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression (Rust's syntax) matches as a whole."""
        return cls("regex", pattern)

    @classmethod
    def lark(cls, text: str) -> Grammar:
        """A text of the language of a Lark grammar, as llguidance reads it; it begins with the rule `start`."""
        return cls("lark", text)
